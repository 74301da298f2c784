"""Conditions as facts: what they read, and what is refused at birth. How they switch is shown in `test_plan`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import WIDTH, conditions, directions, few, latents, vectors

from steersman.errors import RecipeError
from steersman.steering.condition import Above, AllOf, AnyOf, Condition, Not, Since, TokenIs, layers_read, leaves
from steersman.steering.target import Direction, Latent, read
from steersman.steering.vector import Vector

_DIRECTION = Direction(vector=Vector([1.0, 0.0]))
_LATENT = Latent(id=0, encoder_row=Vector([1.0, 0.0]), encoder_bias=0.0, decoder_row=Vector([0.0, 1.0]))
_hidden = st.lists(st.floats(-10, 10, width=32), min_size=WIDTH, max_size=WIDTH)


def _above(layer: int) -> Above:
    return Above(layer=layer, target=_DIRECTION, threshold=0.0)


def test_leaves_and_layers_of_a_tree() -> None:
    one, two, three = _above(1), _above(2), _above(4)
    tree = AllOf(items=(Not(item=one), AnyOf(items=(TokenIs(token_ids=(3,)), Since(item=AllOf(items=(two, three)))))))
    assert leaves(tree) == [one, two, three]
    assert layers_read(tree) == {1, 2, 4}
    assert layers_read(TokenIs(token_ids=(3,))) == frozenset()


@few
@given(conditions())
def test_not_and_since_read_what_their_item_reads(condition: Condition) -> None:
    assert leaves(Not(item=condition)) == leaves(Since(item=condition)) == leaves(condition)
    assert layers_read(AnyOf(items=(condition, condition))) == layers_read(condition)


def test_measure_is_filled_in_by_what_is_read() -> None:
    assert _above(0).resolved_measure == "projection"
    assert Above(layer=0, target=_LATENT, threshold=0.0).resolved_measure == "activation"
    assert Above(layer=0, target=_DIRECTION, threshold=0.0, measure="cosine").resolved_measure == "cosine"


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"target": _DIRECTION, "measure": "activation"},
        {"target": _LATENT, "measure": "projection"},
        {"target": _LATENT, "measure": "cosine"},
        {"layer": -1},
        {"measure": "cosin"},
    ],
    ids=repr,
)
def test_readings_that_mean_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Above(**{"layer": 0, "target": _DIRECTION, "threshold": 0.0, **fields})


@pytest.mark.parametrize("kind", [AllOf, AnyOf])
def test_a_list_of_no_conditions_is_refused(kind: Any) -> None:
    with pytest.raises(RecipeError):
        kind(items=())


def test_a_list_of_no_tokens_is_refused() -> None:
    with pytest.raises(RecipeError):
        TokenIs(token_ids=())


@few
@given(target=directions, hidden=_hidden)
def test_reading_a_direction_is_the_projection_on_its_unit(target: Direction, hidden: list[float]) -> None:
    values = target.vector.tensor.double()
    expected = float(torch.tensor(hidden, dtype=torch.float64) @ values / values.norm())
    assert float(target.read(torch.tensor(hidden))) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert target.width == WIDTH


@few
@given(target=latents, hidden=_hidden)
def test_reading_a_latent_is_its_activation_above_the_threshold_else_zero(target: Latent, hidden: list[float]) -> None:
    before = float(torch.tensor(hidden, dtype=torch.float64) @ target.encoder_row.tensor.double()) + target.encoder_bias
    reading = float(target.read(torch.tensor(hidden)))
    if abs(before - target.threshold) > 1e-3:
        expected = before if before > target.threshold else 0.0
        assert reading == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert reading == 0.0 or reading > target.threshold
    assert target.width == WIDTH


def test_a_latent_exactly_at_its_threshold_is_off() -> None:
    latent = Latent(
        id=0, encoder_row=Vector([1.0, 0.0]), encoder_bias=0.5, decoder_row=Vector([0.0, 1.0]), threshold=2.0
    )
    hidden = torch.tensor([[1.0, 9.0], [1.5, 9.0], [1.5000002, 9.0], [-3.0, 9.0]])
    assert latent.read(hidden).tolist() == pytest.approx([0.0, 0.0, 2.0000002, 0.0])
    assert latent.decoder().tolist() == [0.0, 1.0]


@few
@given(vector=vectors, factor=st.floats(0.01, 100))
def test_only_the_orientation_of_a_direction_counts(vector: Vector, factor: float) -> None:
    hidden = torch.linspace(-1, 1, WIDTH)
    once, longer = Direction(vector=vector), Direction(vector=vector * factor)
    torch.testing.assert_close(once.read(hidden), longer.read(hidden), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(once.decoder(), longer.decoder(), rtol=1e-4, atol=1e-5)


@few
@given(st.lists(directions | latents, min_size=1, max_size=5))
def test_stacked_readings_equal_single_ones_bit_for_bit(targets: list[Direction | Latent]) -> None:
    hidden = torch.randn(len(targets), 4, WIDTH, generator=torch.Generator().manual_seed(0))
    rows, biases, thresholds = zip(*(target.encoder() for target in targets), strict=True)
    together = read(
        hidden, torch.stack(rows)[:, None], torch.tensor(biases)[:, None], torch.tensor(thresholds)[:, None]
    )
    assert torch.equal(together, torch.stack([target.read(hidden[row]) for row, target in enumerate(targets)]))


@pytest.mark.parametrize(
    "fields",
    [
        {"id": -1},
        {"decoder_row": Vector([1.0, 2.0, 3.0])},
        {"encoder_bias": math.nan},
        {"threshold": math.inf},
        {"threshold": -0.5},
    ],
    ids=repr,
)
def test_latents_that_mean_nothing_are_refused(fields: dict[str, Any]) -> None:
    given_fields = {"id": 0, "encoder_row": Vector([1.0, 0.0]), "encoder_bias": 0.0, "decoder_row": Vector([0.0, 1.0])}
    with pytest.raises(RecipeError):
        Latent(**{**given_fields, **fields})
