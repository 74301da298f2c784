"""Recipes are an algebra, checked at birth, and refuse what they were not made for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import few, recipes
from tests.steering.oracle import make_row, play
from tests.tiny import D_MODEL, N_LAYERS, tiny_model

from steersman.errors import RecipeError, RecipeMismatch
from steersman.models.language_model import LanguageModel, ModelRef
from steersman.sae.config import SaeRef
from steersman.steering.condition import Above, TokenIs
from steersman.steering.edits import Ablate, Add, Clamp
from steersman.steering.recipe import Recipe, combine
from steersman.steering.target import Direction
from steersman.steering.vector import Vector

_TOKENS = (1, 0, 2, 3, 4, 1, 5)
_REF = ModelRef(id="one", config_hash="c", weights_hash="w")
_OTHER = ModelRef(id="two", config_hash="c", weights_hash="x")


def _vector(width: int = D_MODEL, seed: int = 0) -> Vector:
    return Vector(torch.randn(width, generator=torch.Generator().manual_seed(seed)))


def _recipe(name: str = "a", **fields: Any) -> Recipe:
    return Recipe(**{"name": name, "edits": (Add(layer=1, vector=_vector()),), **fields})


def _effect(recipe: Recipe) -> torch.Tensor:
    return play([make_row(recipe, _TOKENS, 3)], [len(_TOKENS)])[0][0]


# --- algebra


@few
@given(recipes(), recipes())
def test_a_sum_applies_both_in_either_order(one: Recipe, other: Recipe) -> None:
    one, other = (dataclasses.replace(recipe, model=None) for recipe in (one, other))
    if one.abort is not None and other.abort is not None:
        other = dataclasses.replace(other, abort=one.abort)
    torch.testing.assert_close(_effect(one + other), _effect(other + one), rtol=1e-4, atol=1e-4)
    assert (one + other).edits == one.edits + other.edits
    assert (one + other).abort == (other + one).abort == (one.abort or other.abort)


@few
@given(recipes(), st.floats(-4, 4))
def test_a_factor_multiplies_every_strength_and_nothing_else(recipe: Recipe, factor: float) -> None:
    scaled = factor * recipe
    assert [edit.strength for edit in scaled.edits] == [edit.strength * factor for edit in recipe.edits]
    assert scaled == recipe * factor
    kept = {"name", "description", "abort", "model", "sae", "method"}
    assert all(getattr(scaled, name) == getattr(recipe, name) for name in kept)


@few
@given(recipes())
def test_halving_the_double_and_negating_twice_give_the_same_edits(recipe: Recipe) -> None:
    assert (0.5 * (2 * recipe)).edits == recipe.edits
    opposite = -recipe
    assert (-opposite).edits == recipe.edits
    assert opposite.edits == (recipe * -1).edits


@few
@given(recipes(), recipes())
def test_a_factor_distributes_over_a_sum(one: Recipe, other: Recipe) -> None:
    # Aborts that differ do not add; all else does.
    one, other = (dataclasses.replace(recipe, model=None, abort=TokenIs(token_ids=(0,))) for recipe in (one, other))
    assert (2 * (one + other)).edits == (2 * one + 2 * other).edits


def test_what_was_measured_does_not_outlive_a_change() -> None:
    measured = _recipe(evidence={"score": 1.0})
    assert (2 * measured).evidence is None
    assert (measured + _recipe()).evidence is None
    assert measured.evidence == {"score": 1.0}


def test_the_recorded_factor_is_the_whole_one() -> None:
    assert (0.5 * (4 * _recipe(data={"pairs": 3}))).data == {"pairs": 3, "scaled_by": 2.0}


def test_a_sum_records_its_parts_with_their_own_origin() -> None:
    total = _recipe("a", method="caa", data={"pairs": 3}) + _recipe("b", method="lat", data={"pairs": 5})
    assert total.method == "sum"
    assert total.data == {
        "parts": [
            {"name": "a", "method": "caa", "data": {"pairs": 3}},
            {"name": "b", "method": "lat", "data": {"pairs": 5}},
        ]
    }


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_factor_must_be_finite(factor: float) -> None:
    with pytest.raises(RecipeError):
        factor * _recipe()


def test_combining() -> None:
    one, two, three = (_recipe(name) for name in "abc")
    assert combine([one]) is one
    assert combine([one, two, three]) == one + two + three
    assert combine([one, two, three]).name == "a+b+c"
    with pytest.raises(RecipeError):
        combine([])


def test_a_sum_keeps_what_both_agree_on() -> None:
    sae, other = SaeRef(id="s", layer=1, weights_hash="h"), SaeRef(id="s", layer=1, weights_hash="i")
    assert (_recipe(sae=sae) + _recipe(sae=sae)).sae == sae
    assert (_recipe(sae=sae) + _recipe(sae=other)).sae is None
    assert (_recipe(model=_REF) + _recipe()).model == _REF
    assert (_recipe() + _recipe(model=_REF)).model == _REF
    assert (_recipe(model=_REF) + _recipe(model=dataclasses.replace(_REF, id="elsewhere"))).model == _REF


def test_recipes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(RecipeMismatch, match=r"one.*two"):
        _recipe(model=_REF) + _recipe(model=_OTHER)
    with pytest.raises(RecipeError, match="dimensions"):
        _recipe() + _recipe(edits=(Add(layer=1, vector=_vector(8)),))
    one, other = (_recipe(abort=TokenIs(token_ids=(token,))) for token in (1, 2))
    with pytest.raises(RecipeError, match="AnyOf"):
        one + other
    assert (one + one).abort == one.abort


# --- at birth


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "  "},
        {"edits": ()},
        {"edits": (Add(layer=0, vector=_vector(8)), Add(layer=1, vector=_vector(9)))},
        {"edits": (Add(layer=0, vector=_vector(8)), Ablate(layer=1, target=Direction(vector=_vector(9))))},
        {"abort": Above(layer=0, target=Direction(vector=_vector(9)), threshold=0.0)},
        {
            "edits": (
                Add(
                    layer=1,
                    vector=_vector(8),
                    when=Above(layer=0, target=Direction(vector=_vector(9)), threshold=0.0),
                ),
            )
        },
    ],
    ids=["no name", "blank name", "nothing to do", "two widths", "two kinds", "abort's width", "condition's width"],
)
def test_a_recipe_that_cannot_run_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        _recipe(**fields)


def test_a_recipe_may_only_abort() -> None:
    stop = _recipe(edits=(), abort=TokenIs(token_ids=(1,)))
    assert stop.layers == ()
    assert (stop + _recipe()).layers == (1,)


def test_layers_and_conditions_are_all_that_is_touched_or_read() -> None:
    target = Direction(vector=_vector())
    gate, stop = (Above(layer=layer, target=target, threshold=0.0) for layer in (0, 3))
    recipe = _recipe(
        edits=(Add(layer=2, vector=_vector(), when=gate), Clamp(layer=2, target=target, value=0.0)), abort=stop
    )
    assert recipe.layers == (0, 2, 3)
    assert recipe.conditions == (gate, stop)


def test_recipes_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _recipe().name = "other"  # type: ignore[misc]


# --- fit to a model


def test_a_recipe_fits_the_model_that_it_was_made_for_in_any_number_format(tiny: LanguageModel) -> None:
    recipe = _recipe(model=tiny.ref)
    recipe.check_fits(tiny)
    recipe.check_fits(tiny_model(dtype=torch.bfloat16))
    (recipe + 0.5 * recipe).check_fits(tiny)
    _recipe().check_fits(tiny)


def test_another_checkpoint_or_architecture_is_refused_by_name(tiny: LanguageModel) -> None:
    for other in (tiny_model(seed=1), tiny_model("qwen3")):
        with pytest.raises(RecipeMismatch) as refused:
            _recipe(model=tiny.ref).check_fits(other)
        assert tiny.name in str(refused.value)
        assert other.name in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"edits": (Add(layer=0, vector=_vector(D_MODEL + 1)),)},
        {"edits": (), "abort": Above(layer=0, target=Direction(vector=_vector(8)), threshold=0.0)},
        {"edits": (Add(layer=N_LAYERS, vector=_vector()),)},
        {"edits": (), "abort": Above(layer=N_LAYERS, target=Direction(vector=_vector()), threshold=0.0)},
    ],
    ids=["width", "abort's width", "layer", "abort's layer"],
)
def test_a_recipe_of_another_shape_is_refused(tiny: LanguageModel, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeMismatch):
        _recipe(**fields).check_fits(tiny)
