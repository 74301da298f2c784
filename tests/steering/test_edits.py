"""Edits as facts: refused at birth where they mean nothing, scaled by their strength alone."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import WIDTH, few
from tests.recipes import edits as any_edit

from steersman.errors import RecipeError
from steersman.sae.config import SaeRef
from steersman.steering import edits
from steersman.steering.condition import Above, Not, Since
from steersman.steering.edits import (
    KINDS,
    Ablate,
    Add,
    Clamp,
    Edit,
    Rotate,
    SaeEdit,
    Scale,
    Swap,
    Weight,
    scaled,
    width,
)
from steersman.steering.stacks import STACKS
from steersman.steering.target import Direction, Latent
from steersman.steering.vector import Vector

_VECTOR = Vector([1.0, 2.0])
_DIRECTION = Direction(vector=_VECTOR)
_LATENT = Latent(id=3, encoder_row=_VECTOR, encoder_bias=0.0, decoder_row=_VECTOR)
_SAE = SaeRef(id="toy", layer=2, weights_hash="ab" * 32)
_OWN: dict[str, dict[str, Any]] = {
    "add": {"vector": _VECTOR},
    "clamp": {"target": _DIRECTION, "value": 1.0},
    "scale": {"target": _DIRECTION, "factor": 2.0},
    "ablate": {"target": _DIRECTION},
    "rotate": {"vector": _VECTOR, "degrees": 10.0},
    "weight": {"sae": _SAE, "scores": _VECTOR},
    "swap": {"sae": _SAE, "scores": _VECTOR, "keep_error": False},
}


def make(kind: str, **fields: Any) -> Edit:
    """An edit of a kind with what it needs."""
    return KINDS[kind](**{"layer": 2, **_OWN[kind], **fields})


def test_every_kind_is_named_after_itself_and_has_a_stack() -> None:
    members = {member.__name__.lower(): member for member in typing.get_args(typing.get_args(edits.Edit)[0])}
    assert members == KINDS
    assert set(STACKS) == set(KINDS) == set(_OWN)
    assert all(make(kind).kind == kind for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{"layer": -1}, {"strength": math.nan}, {"strength": math.inf}], ids=repr)
def test_what_no_edit_can_mean_is_refused(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        make(kind, **fields)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("add", {"unit": "residual"}),
        ("clamp", {"unit": "norm"}),
        ("clamp", {"value": math.nan}),
        ("clamp", {"target": _LATENT, "unit": "residual_norm"}),
        ("scale", {"factor": math.inf}),
        ("rotate", {"degrees": math.nan}),
        ("rotate", {"degrees": 180.5}),
        ("rotate", {"degrees": -181.0}),
        ("weight", {"layer": 1}),
        ("swap", {"sae": SaeRef(id="other", layer=3, weights_hash="")}),
    ],
    ids=repr,
)
def test_what_one_kind_cannot_mean_is_refused(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        make(kind, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_waits_for_its_own_layer_or_an_earlier_one_only(kind: str) -> None:
    early, same, late = (Above(layer=layer, target=_DIRECTION, threshold=0.0) for layer in (1, 2, 3))
    assert make(kind, when=early).when is early
    assert make(kind, when=same).when is same
    with pytest.raises(RecipeError, match="layer 3"):
        make(kind, when=Not(item=Since(item=late)))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_refused(kind: str) -> None:
    with pytest.raises(TypeError):
        make(kind, strenght=1.0)


@few
@given(edit=any_edit(), factor=st.floats(-4, 4))
def test_scaling_changes_the_strength_and_nothing_else(edit: Edit, factor: float) -> None:
    longer = scaled(edit, factor)
    assert longer.strength == edit.strength * factor
    assert dataclasses.replace(longer, strength=edit.strength) == edit
    assert scaled(edit, 1.0) == edit


def test_scaling_out_of_range_is_refused() -> None:
    with pytest.raises(RecipeError):
        scaled(make("add", strength=1e300), 1e300)


@few
@given(any_edit())
def test_width_is_that_of_the_vectors(edit: Edit) -> None:
    assert width(edit) == (None if isinstance(edit, SaeEdit) else WIDTH)


@pytest.mark.parametrize("kind", KINDS)
def test_edits_do_not_change(kind: str) -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        make(kind).strength = 2.0  # type: ignore[misc]
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
        make(kind).new = 2.0  # type: ignore[union-attr]


def test_equal_edits_are_equal_and_hash_as_one() -> None:
    pairs = [(make(kind), make(kind)) for kind in KINDS]
    assert all(one == two and hash(one) == hash(two) for one, two in pairs)
    assert len({one for one, _ in pairs}) == len(KINDS)
    assert {type(one) for one, _ in pairs} == {Add, Clamp, Scale, Ablate, Rotate, Weight, Swap}
