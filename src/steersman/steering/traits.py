"""The traits that ship: recipes of the bundled model, each with the evidence that it does what its name says.

    data/traits/cheerful.json, cheerful.safetensors     a trait; multiplier 1 is the strength that proved itself
    data/traits/left-out.json                           what was tried and did not prove itself, with the reason

Reads files and nothing else: whoever asks often keeps what it gets. Knows nothing of how traits are made.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from steersman.errors import DataError, NotFound, did_you_mean
from steersman.facts import fact
from steersman.files import read_text
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe

LEFT_OUT = "left-out.json"
"""File of the traits that did not prove themselves."""
_MOST_NAMED = 40


@fact
class LeftOut:
    """A trait that was tried and does not ship."""

    description: str
    """The behaviour, in a sentence."""
    reason: str


def shipped_folder() -> Path:
    """Where the traits are in the package."""
    return Path(str(resources.files("steersman") / "data" / "traits"))


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Names of the traits, in order; none where there is no such folder."""
    found = (folder or shipped_folder()).glob("*.json")
    return tuple(sorted(path.stem for path in found if path.name != LEFT_OUT))


def trait_name(text: str) -> str:
    """How a trait is called in files and recipes: its words in lower case, joined by dashes; empty for text without a word."""
    return "-".join(re.findall(r"\w+", text.lower()))


def load_trait(name: str, folder: Path | None = None) -> Recipe:
    """The recipe of a trait; case and spaces do not matter.

    Args:
        name: such as `cheerful` or `child-friendly`.
        folder: of traits; by default those that ship.

    Raises:
        NotFound: no such trait, with the one that was probably meant, or why it was left out.
        RecipeError: its files are damaged.
    """
    known, wanted = names(folder), _key(name)
    if wanted in known:
        return load_recipe((folder or shipped_folder()) / f"{wanted}.json")
    tried = left_out(folder).get(wanted)
    if tried is not None:
        raise NotFound(
            f"the trait {wanted!r} does not ship: {tried.reason}; describe it in other words: steersman traits train"
        )
    hint = did_you_mean(wanted, known) or f" (there are: {', '.join(known[:_MOST_NAMED]) or 'none'})"
    raise NotFound(f"there is no trait {_short(name)!r}{hint}; make one with: steersman traits train")


def left_out(folder: Path | None = None) -> dict[str, LeftOut]:
    """The traits that were tried and did not prove themselves, by name.

    Raises:
        DataError: the file is damaged.
    """
    path = (folder or shipped_folder()) / LEFT_OUT
    if not path.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, LeftOut]).validate_python(json.loads(read_text(path, "traits")))
    except (ValueError, ValidationError) as error:
        raise DataError(
            f"{path} is damaged; install steersman again, or remove the file to try those traits anew"
        ) from error


def described(name: str, folder: Path | None = None) -> str | None:
    """The sentence that a trait is described by, where it ships or was tried; None for any other.

    Raises:
        RecipeError: its files are damaged.
        DataError: the list of those that were left out is.
    """
    wanted = _key(name)
    if wanted in names(folder):
        return load_trait(wanted, folder).description
    tried = left_out(folder).get(wanted)
    return tried.description if tried is not None else None


def _key(name: str) -> str:
    return "-".join(name.lower().split())


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
