"""A recipe as rows and files take it, and back. Knows nothing of SQL or of owners."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save as save_tensors

from steersman.errors import DataError
from steersman.facts import fact
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import from_wire, to_wire
from steersman.store.blobs import Blobs
from steersman.store.checks import from_document, to_document

_ABOUT = ("description", "method", "evidence")


@fact
class Packed:
    """A recipe ready to be kept."""

    facts: str
    """JSON of everything but the vectors' numbers."""
    about: str
    """JSON of what a list shows, so that it need not read all the facts: description, method, evidence."""
    tensors: bytes | None
    """A safetensors file; None where it has no vectors."""


def pack(recipe: Recipe) -> Packed:
    """Take a recipe apart.

    Raises:
        DataError: it holds what JSON cannot.
    """
    what = f"recipe {recipe.name[:60]!a}"
    try:
        facts, tensors = to_wire(recipe)
    except ValueError as error:  # pydantic's, for half a character.
        raise DataError(f"{what} cannot be kept as JSON: {' '.join(str(error).split())[:200]}") from error
    return Packed(
        facts=to_document(facts, what),
        about=to_document({name: facts[name] for name in _ABOUT}, what),
        tensors=save_tensors(tensors, metadata={"format": "steersman-recipe"}) if tensors else None,
    )


def unpack(facts: str, tensors: str | None, blobs: Blobs, **changed: Any) -> Recipe:
    """Put a recipe together again, `changed` facts (its name) in place of what was packed.

    Raises:
        StorageError: its tensors are missing or damaged.
        RecipeError: a newer steersman wrote it.
    """
    return from_wire({**from_document(facts), **changed}, blobs.read(tensors) if tensors is not None else {})
