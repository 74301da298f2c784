"""Recipes over the wire: what goes out comes back the same, and what nobody should send is refused in one line."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tests.recipes import few, recipes

from steersman.errors import DataError, RecipeError, SteersmanError
from steersman.server import recipe_wire
from steersman.server.recipe_wire import (
    MOST_DEPTH,
    MOST_EDITS,
    MOST_LISTED,
    inline,
    untrusted_recipe,
    untrusted_tensors,
)
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import to_wire


def _facts(**more: Any) -> dict[str, Any]:
    edit = {"kind": "add", "layer": 1, "vector": [1.0, 0.0, -2.0]}
    return {"steersman_recipe": 1, "name": "one", "edits": [edit], **more}


def _edited(**fields: Any) -> dict[str, Any]:
    return _facts(edits=[{**_facts()["edits"][0], **fields}])


def _packed(tensors: dict[str, torch.Tensor]) -> str:
    return base64.b64encode(save(tensors)).decode()


# --- there and back


# A NUL in a text is refused: not every database can keep it.
_sendable = recipes().filter(lambda recipe: "\\u0000" not in json.dumps(to_wire(recipe)[0]))


@few
@given(_sendable)
def test_a_recipe_sent_inline_comes_back_the_same(recipe: Recipe) -> None:
    assert untrusted_recipe(json.loads(json.dumps(inline(recipe)))) == recipe


@few
@given(_sendable)
def test_a_recipe_sent_with_its_tensors_comes_back_the_same(recipe: Recipe) -> None:
    facts, tensors = to_wire(recipe)
    data = save(tensors)
    back = untrusted_tensors(base64.b64encode(data).decode(), hashlib.sha256(data).hexdigest())
    assert untrusted_recipe(json.loads(json.dumps(facts)), back) == recipe


def test_a_text_that_looks_like_a_vector_stays_a_text() -> None:
    vector = untrusted_recipe(_facts()).edits[0].vector  # type: ignore[union-attr]
    recipe = untrusted_recipe(_facts(description=vector.key, data={"vector": vector.key}))
    assert inline(recipe)["description"] == vector.key
    assert untrusted_recipe(inline(recipe)) == recipe


# --- what is refused


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ([], "JSON object"),
        (None, "JSON object"),
        ({}, "steersman_recipe"),
        (_facts(nmae="x"), "did you mean 'name'"),
        (_facts(name=" "), "name"),
        (_facts(data={"x": float("nan")}), "finite"),
        (_facts(data={"x": 2**70}), "64 bits"),
        (_facts(data={"x": "a\0b"}), "NUL"),
        (_facts(data={"x\0": 1}), "NUL"),
        (_facts(description="\ud800"), "half a character"),
        (_facts(data={"x": _deep(MOST_DEPTH)}), "nested"),
        (_facts(data={"x": _deep(100_000)}), "nested"),
        (_facts(edits=_facts()["edits"] * (MOST_EDITS + 1)), "edits"),
        (_edited(vector=[1.0, float("inf"), 0.0]), "finite"),
        (_edited(vector=[0.0, 0.0, 0.0]), "zero"),
        (_edited(vector="vector:" + "0" * 64), "tensors"),
        (_edited(vector=[10**400, 1, 1]), "whole number"),
        (_edited(layer=10**30), "whole number"),
        (_edited(layer=-1), "layer"),
        (_edited(where={"start": 2**40}), "2\\^31"),
        (_edited(where={"positions": list(range(MOST_LISTED + 1))}), "positions"),
        (_edited(when={"kind": "token", "token_ids": list(range(MOST_LISTED + 1))}), "token_ids"),
        (_edited(when={"kind": "any", "items": [{"kind": "token", "token_ids": [1]}] * 300}), "conditions"),
        (_edited(strength="much"), "strength"),
        (_edited(strength=float("nan")), "finite"),
    ],
)
def test_recipes_that_nobody_should_send_are_refused(facts: Any, says: str) -> None:
    with pytest.raises(SteersmanError, match=says) as caught:
        untrusted_recipe(facts)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def _odd_header(dtype: str) -> str:
    header = json.dumps({"x": {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}).encode()
    return base64.b64encode(struct.pack("<Q", len(header)) + header + b"\0" * 4).decode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "damaged"),
        ("not base64!", "base64"),
        ("é", "base64"),
        (base64.b64encode(b"\x80\x04pickle").decode(), "damaged"),
        (base64.b64encode(struct.pack("<Q", 2**60)).decode(), "damaged"),
        (_odd_header("F4"), "damaged|is torch"),
        (_odd_header("BOOL"), "damaged|is torch"),
        (_packed({"x": torch.ones(3, dtype=torch.float64)}), "float64"),
        (_packed({"x": torch.ones(2, 3)}), "one dimension"),
        (_packed({"x": torch.ones(0)}), "one dimension"),
        (_packed({"x": torch.tensor([1.0, float("nan")])}), "NaN"),
        (_packed({str(number): torch.ones(1) for number in range(recipe_wire.MOST_TENSORS + 1)}), "too many"),
    ],
)
def test_tensors_that_nobody_should_send_are_refused(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        untrusted_tensors(text)


def test_tensors_of_another_hash_are_refused() -> None:
    with pytest.raises(DataError, match="SHA-256"):
        untrusted_tensors(_packed({"x": torch.ones(3)}), "0" * 64)


def test_too_many_bytes_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_wire, "MOST_TENSOR_BYTES", 64)
    with pytest.raises(DataError, match="larger"):
        untrusted_tensors("A" * 1000)


def test_a_tensor_with_other_content_than_its_name_says_is_refused() -> None:
    facts, tensors = to_wire(untrusted_recipe(_facts()))
    with pytest.raises(RecipeError, match="other content"):
        untrusted_recipe(facts, {name: tensor * 2 for name, tensor in tensors.items()})


def test_a_tensor_that_belongs_to_nothing_is_refused() -> None:
    facts, tensors = to_wire(untrusted_recipe(_facts()))
    with pytest.raises(RecipeError, match="belongs to no vector"):
        untrusted_recipe(facts, {**tensors, "vector:" + "0" * 64: torch.ones(3)})


_any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda items: st.lists(items, max_size=4) | st.dictionaries(st.text(max_size=8), items, max_size=4),
    max_leaves=12,
)
_FIELDS = ("name", "edits", "description", "abort", "model", "sae", "method", "data", "evidence", "steersman_recipe")
_EDIT_FIELDS = (
    "kind",
    "layer",
    "strength",
    "where",
    "schedule",
    "when",
    "vector",
    "unit",
    "features",
    "target",
    "value",
)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(_FIELDS), _any_json, max_size=3),
    st.dictionaries(st.sampled_from(_EDIT_FIELDS), _any_json),
)
def test_any_facts_are_a_recipe_or_refused(outer: dict[str, Any], inner: dict[str, Any]) -> None:
    facts = {**_edited(**inner), **outer}
    try:
        recipe = untrusted_recipe(facts)
    except SteersmanError as error:
        assert "\n" not in str(error)
        return
    assert untrusted_recipe(inline(recipe)) == recipe
