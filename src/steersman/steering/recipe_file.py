"""Keep recipes: one JSON file for the facts and one safetensors file beside it for the vectors.

The JSON refers to tensors by content hash, so a file that was mixed up or damaged is noticed. Unknown fields are errors, with
a suggestion. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from steersman.errors import RecipeError, did_you_mean
from steersman.files import replacing
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

FORMAT = 1
_MAX_JSON_BYTES = 16 << 20
_MAX_TENSOR_BYTES = 1 << 30
_UNKNOWN = {"unexpected_keyword_argument", "extra_forbidden"}
_MISSING = {"missing", "missing_argument", "missing_keyword_only_argument"}


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write `path` (JSON) and the tensors beside it (see `tensor_path`); both or neither.

    Raises:
        RecipeError: `path` is a name for tensors, or the recipe holds what JSON cannot (NaN in its data, half a character).
        StorageError: the disk refused.
    """
    if path.suffix == ".safetensors":
        raise RecipeError(f"{path} is a name for tensors; save the recipe as {path.with_suffix('.json').name}")
    facts, tensors = to_wire(recipe)
    try:
        text = (json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise RecipeError(f"recipe {recipe.name!r} cannot be written as JSON: {error}") from error
    with replacing(path) as new_facts, replacing(tensor_path(path)) as new_tensors:
        new_facts.write_bytes(text)
        new_tensors.write_bytes(save_tensors(tensors, metadata={"format": "steersman-recipe"}))


def load_recipe(path: Path) -> Recipe:
    """Read a recipe written by `save_recipe`.

    Raises:
        RecipeError: no such file, not a recipe, unknown fields, or tensors that are missing, damaged or of another file.
    """
    data = _read(path, _MAX_JSON_BYTES)
    try:
        facts = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not a recipe: it is no valid JSON ({error})") from error
    try:
        return from_wire(facts, _TensorFile(tensor_path(path)))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def tensor_path(path: Path) -> Path:
    """Where the tensors of the recipe at `path` are: `a.safetensors` for `a.json`, `a.b.tensors.safetensors` for `a.b`."""
    name = path.stem if path.suffix == ".json" else f"{path.name}.tensors"
    return path.parent / f"{name}.safetensors"


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
    if type(version) is not int or version != FORMAT:
        raise RecipeError(
            f"not a recipe of format {FORMAT} (its 'steersman_recipe' is {_short(repr(version))}); is steersman up to date?"
        )
    try:
        return _adapter().validate_python(facts, context={"tensors": tensors})
    except ValidationError as error:
        found = error.errors()
        # An unknown field first: misspelt, it is the reason why another one is missing.
        raise RecipeError(_explain(next((e for e in found if e["type"] in _UNKNOWN), found[0]))) from error


def schema() -> dict[str, Any]:
    """JSON schema of a recipe."""
    made = _adapter().json_schema()
    made["properties"] = {"steersman_recipe": {"type": "integer", "const": FORMAT}, **made["properties"]}
    made["required"] = ["steersman_recipe", *made["required"]]
    return made


class _TensorFile(Mapping[str, Tensor]):
    """The tensors beside a recipe, read when the first is asked for: a recipe may hold none, or all inline."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        data = _read(self._path, _MAX_TENSOR_BYTES)
        try:
            tensors: dict[str, Tensor] = load_tensors(data)
        except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a number format that torch does not have.
            raise RecipeError(f"{self._path} is damaged ({error}); restore it or fit the recipe again") from error
        return tensors

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise RecipeError(f"{path} is too large for a recipe ({path.stat().st_size} bytes)")
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error


@cache
def _adapter() -> TypeAdapter[Recipe]:
    return TypeAdapter(Recipe, config=None)


def _explain(error: ErrorDetails) -> str:
    place = _short(".".join(map(str, error["loc"])))
    if error["type"] in _UNKNOWN:
        *holder, name = map(str, error["loc"])
        meant = did_you_mean(name, _fields_at(holder))
        return f"unknown field {_short(name)!r} in {_short('.'.join(holder)) or 'recipe'}{meant}"
    if error["type"] in _MISSING:
        return f"missing field {place!r}"
    message = _short(error["msg"].removeprefix("Value error, "), 300)
    return f"{place}: {message}" if place else message


def _fields_at(place: list[str]) -> list[str]:
    """Names of the fields that the object at `place` may have, found by following the schema there."""
    whole = part = schema()
    for step in place:
        if "discriminator" in part:  # pydantic's places name the kind too.
            part = {"$ref": part["discriminator"]["mapping"][step]}
        else:
            part = part["items"] if "items" in part else part["properties"][step]
        part = part.get("anyOf", [part])[0]  # Where it may be null: what it is otherwise.
        if "$ref" in part:
            part = whole["$defs"][part["$ref"].removeprefix("#/$defs/")]
    return list(part["properties"])


def _short(text: str, limit: int = 120) -> str:
    """On one line, its middle left out where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 :]}"


def _vectors(value: object) -> Iterator[Vector]:
    if isinstance(value, Vector):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _vectors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _vectors(getattr(value, name))
