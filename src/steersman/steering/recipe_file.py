"""Keep recipes: one JSON file for the facts and one safetensors file beside it for the vectors.

The JSON refers to tensors by content hash, so a file that was mixed up or damaged is noticed. Unknown fields are errors, with
a suggestion. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from steersman.errors import RecipeError, SteersmanError, did_you_mean
from steersman.files import write_bytes
from steersman.steering.recipe import Recipe
from steersman.steering.vector import PREFIX, Vector

FORMAT = 1
_MAX_JSON_BYTES = 16 << 20


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write `path` (JSON) and its sibling with the suffix `.safetensors`; each whole or not at all.

    Raises:
        StorageError: the disk refused.
    """
    facts, tensors = to_wire(recipe)
    # The tensors first: until the JSON names them, they are only a file that nobody reads.
    write_bytes(tensor_path(path), save_tensors(tensors, metadata={"format": "steersman-recipe"}))
    write_bytes(path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


def load_recipe(path: Path) -> Recipe:
    """Read a recipe written by `save_recipe`.

    Raises:
        RecipeError: no such file, not a recipe, unknown fields, or tensors that are missing, damaged or of another file.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise RecipeError(f"{path} is too large for a recipe ({path.stat().st_size} bytes)")
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecipeError(f"{path} is not a recipe: it is no valid JSON ({error})") from error
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
    tensors: dict[str, Tensor] = {}
    if any(value.startswith(PREFIX) for value in _strings(facts)):
        try:
            tensors = load_tensors(tensor_path(path).read_bytes())
        except (SafetensorError, ValueError) as error:
            raise RecipeError(
                f"{tensor_path(path)} is damaged ({error}); restore it or fit the recipe again"
            ) from error
        except OSError as error:
            raise RecipeError(f"cannot read the recipe's tensors {tensor_path(path)}: {error.strerror}") from error
    try:
        return from_wire(facts, tensors)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def tensor_path(path: Path) -> Path:
    """Where the tensors of the recipe at `path` are."""
    return path.with_suffix(".safetensors")


def to_wire(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The recipe as JSON-ready facts and the tensors they refer to, by content hash."""
    facts = {"steersman_recipe": FORMAT, **_adapter().dump_python(recipe, mode="json")}
    return facts, {vector.key: vector.tensor for vector in _vectors(recipe)}


def from_wire(facts: Any, tensors: Mapping[str, Tensor]) -> Recipe:
    """The recipe that `to_wire` wrote; vectors may also stand inline as lists of numbers.

    Raises:
        RecipeError: anything is missing, unknown, of the wrong type or out of range; the message names the place.
    """
    if not isinstance(facts, dict):
        raise RecipeError("a recipe is a JSON object")
    facts = dict(facts)
    version = facts.pop("steersman_recipe", None)
    if version != FORMAT:
        raise RecipeError(
            f"not a recipe of format {FORMAT} (its 'steersman_recipe' is {version!r}); is steersman up to date?"
        )
    try:
        return _adapter().validate_python(facts, context={"tensors": tensors})
    except ValidationError as error:
        raise RecipeError(_explain(error.errors()[0])) from error
    except SteersmanError as error:
        raise RecipeError(str(error)) from error


def schema() -> dict[str, Any]:
    """JSON schema of a recipe."""
    return _adapter().json_schema()


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe, config=None)


def _explain(error: ErrorDetails) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        holder = ".".join(str(part) for part in error["loc"][:-1]) or "recipe"
        known = _fields_beside(error)
        return f"unknown field {str(error['loc'][-1])!r} in {holder}{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"missing field {place!r}"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}"


def _fields_beside(error: ErrorDetails) -> list[str]:
    """Field names that the recipe's schema knows; enough to guess what a misspelt one meant."""
    known = schema()
    parts = [known, *known.get("$defs", {}).values()]
    kinds = {str(part) for part in error["loc"]}
    named = [part for part in parts if part.get("properties", {}).get("kind", {}).get("const") in kinds]
    return [name for part in named or parts for name in part.get("properties", {})]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _vectors(value: object) -> Iterator[Vector]:
    if isinstance(value, Vector):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _vectors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _vectors(getattr(value, name))
