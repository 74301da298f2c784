"""Recipes from JSON that nobody vouches for, and back as JSON that stands alone. Knows nothing of HTTP or the store.

A recipe that passes here cannot disturb others: every number is finite and fits the tensors it meets, lists are bounded (each
position of a `where` costs memory at every token of every row), nesting is shallow, and tensors are what they say they are.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from steersman.errors import DataError, RecipeError
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import from_wire, to_wire

MOST_EDITS = 256
MOST_CONDITIONS = 256
"""In all edits together, parts of conditions counted one by one."""
MOST_LISTED = 1024
"""Entries of one `positions` or `token_ids`."""
MOST_DEPTH = 64
MOST_TENSORS = 1024
MOST_TENSOR_BYTES = 48 << 20
_MOST_WHOLE = 2**31 - 1
_MOST_KEPT = 2**63 - 1
_LISTS = ("positions", "token_ids")
_CONDITIONS = frozenset({"above", "token", "not", "all", "any", "since"})
_STEERING = ("edits", "abort")
_VECTORS = frozenset({"vector", "scores", "encoder_row", "decoder_row"})
"""Fields that hold a vector, in edits, targets and conditions."""


def untrusted_recipe(facts: object, tensors: Mapping[str, Tensor] | None = None) -> Recipe:
    """The recipe that somebody sent, checked.

    Args:
        facts: as in a recipe's file (`steersman_recipe`, `name`, `edits`, …); vectors inline or by the names of tensors.
        tensors: by those names, see `untrusted_tensors`.

    Raises:
        RecipeError: not a recipe, larger than allowed, numbers that are no numbers, or tensors that it does not use.
    """
    _check_values(facts)
    if isinstance(facts, dict):
        _check_steering(facts)
    recipe = from_wire(facts, tensors or {})
    if idle := sorted(set(tensors or {}) - set(to_wire(recipe)[1])):
        raise RecipeError(f"tensor {_cut(idle[0])!r} belongs to no vector of the recipe; leave it out")
    return recipe


def untrusted_tensors(text: str, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file in base64, by name: float32, one dimension, finite.

    Args:
        text: standard base64 with padding.
        sha256: hex SHA-256 of the file, compared where given.

    Raises:
        DataError: no base64, too large, another hash, damaged, or tensors of another kind.
    """
    if len(text) > MOST_TENSOR_BYTES * 4 // 3 + 4:
        raise DataError(f"the tensors are larger than {MOST_TENSOR_BYTES >> 20} MB; send fewer or smaller vectors")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"'tensors' is no base64 ({error}); encode the safetensors file as standard base64") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256.lower():
        raise DataError("the tensors have another SHA-256 than 'tensors_sha256' says; send the file again")
    try:
        # KeyError: a number format that torch does not have.
        tensors: dict[str, Tensor] = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"'tensors' is no safetensors file, or damaged ({_cut(str(error))}); send it again") from error
    if len(tensors) > MOST_TENSORS:
        raise DataError(f"{len(tensors)} tensors are too many; a recipe holds {MOST_TENSORS} at most")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.ndim != 1 or not tensor.numel():
            raise DataError(
                f"tensor {_cut(name)!r} is {tensor.dtype} of shape {tuple(tensor.shape)}; vectors are float32 with one dimension"
            )
        if not torch.isfinite(tensor).all():
            raise DataError(f"tensor {_cut(name)!r} holds NaN or infinity; fit the vector again")
    return tensors


def inline(recipe: Recipe) -> dict[str, Any]:
    """The facts of a recipe with its vectors as lists of numbers: one JSON object that every reader of recipes takes."""
    facts, tensors = to_wire(recipe)

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: tensors[item].tolist() if key in _VECTORS and isinstance(item, str) else whole(item)
                for key, item in value.items()
            }
        return [whole(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: whole(value) if key in _STEERING else value for key, value in facts.items()}


def _check_values(facts: object) -> None:
    """Refuse what is JSON for Python alone (NaN), what no database keeps, and what is nested without end."""
    for value, depth in _walk(facts):
        if depth > MOST_DEPTH:
            raise RecipeError(f"the recipe is nested deeper than {MOST_DEPTH} levels; make it flatter")
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError("the recipe holds NaN or infinity; every number must be finite")
        if isinstance(value, int) and abs(value) > _MOST_KEPT:
            raise RecipeError("the recipe holds a whole number beyond 64 bits; use a smaller one")
        if isinstance(value, str):
            _check_text(value)


def _check_steering(facts: Mapping[str, Any]) -> None:
    """Refuse steering that would cost more than any that makes sense."""
    edits = facts.get("edits")
    if isinstance(edits, list | tuple) and len(edits) > MOST_EDITS:
        raise RecipeError(f"the recipe has {len(edits)} edits; {MOST_EDITS} are the most")
    conditions = 0
    for value, _ in _walk([facts.get(name) for name in _STEERING]):
        if isinstance(value, int) and abs(value) > _MOST_WHOLE:
            raise RecipeError(f"the recipe holds the whole number {_cut(str(value))}; use one below 2^31")
        if not isinstance(value, dict):
            continue
        kind = value.get("kind")
        conditions += isinstance(kind, str) and kind in _CONDITIONS
        for name in _LISTS:
            listed = value.get(name)
            if isinstance(listed, list) and len(listed) > MOST_LISTED:
                raise RecipeError(f"'{name}' has {len(listed)} entries; {MOST_LISTED} are the most")
    if conditions > MOST_CONDITIONS:
        raise RecipeError(f"the recipe has {conditions} conditions; {MOST_CONDITIONS} are the most")


def _walk(value: object) -> Iterator[tuple[object, int]]:
    """Every value in a JSON value, keys among them, with its depth; nothing below the deepest level. Never recurses."""
    pending = [(value, 0)]
    while pending:
        found, depth = pending.pop()
        yield found, depth
        if depth > MOST_DEPTH:
            continue
        if isinstance(found, dict):
            pending += [(item, depth + 1) for pair in found.items() for item in pair]
        elif isinstance(found, list | tuple):
            pending += [(item, depth + 1) for item in found]


def _check_text(text: str) -> None:
    if "\0" in text:
        raise RecipeError("the recipe holds a text with a NUL character; remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError("the recipe holds half a character (a lone surrogate); write it whole") from error


def _cut(text: str, limit: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}…"
