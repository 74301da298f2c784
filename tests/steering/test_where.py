"""Where: the mask equals the sentence that describes each field, position by position, whatever the padding."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.recipes import N_VOCAB, few, schedules, wheres
from tests.steering.oracle import gain_of, touches

from steersman.errors import RecipeError
from steersman.steering.where import Decay, Ramp, Schedule, Where


@settings(few, max_examples=150)
@given(where=wheres(), prompt_lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data())
def test_mask_equals_the_plain_question(where: Where, prompt_lengths: list[int], data: st.DataObject) -> None:
    seq = data.draw(st.integers(1, 10))
    tokens = data.draw(st.lists(st.integers(0, N_VOCAB - 1), min_size=seq, max_size=seq))
    # Each row stands at another place of its sequence, as in a running batch.
    offsets = [data.draw(st.integers(0, 4)) for _ in prompt_lengths]
    positions = torch.tensor([[offset + at for at in range(seq)] for offset in offsets])
    ids = torch.tensor([tokens] * len(prompt_lengths))
    mask = where.mask(positions, torch.tensor(prompt_lengths)[:, None], ids)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [
        [touches(where, offset + at, length, tokens[at]) for at in range(seq)]
        for offset, length in zip(offsets, prompt_lengths, strict=True)
    ]


def test_every_small_window_exhaustively() -> None:
    positions, ids = torch.arange(7)[None], torch.zeros(1, 7, dtype=torch.long)
    for scope, start, length, first, prompt in itertools.product(
        ("all", "prompt", "generated"), range(4), (None, 1, 2, 9), (False, True), range(1, 8)
    ):
        stop = None if length is None else start + length
        where = Where(scope=scope, start=start, stop=stop, first_token=first)  # type: ignore[arg-type]
        expected = [touches(where, at, prompt, 0) for at in range(7)]
        assert where.mask(positions, torch.tensor([[prompt]]), ids)[0].tolist() == expected


def test_negative_positions_count_from_the_end_of_each_prompt() -> None:
    positions = torch.arange(6).expand(3, 6)
    mask = Where(positions=(-1, -3)).mask(positions, torch.tensor([[2], [4], [6]]), torch.zeros_like(positions))
    assert [row.nonzero().flatten().tolist() for row in mask] == [[1], [1, 3], [3, 5]]


def test_the_first_token_is_left_alone_unless_asked_for_by_name() -> None:
    positions, prompt, ids = torch.arange(3)[None], torch.tensor([[3]]), torch.zeros(1, 3, dtype=torch.long)
    for where in (Where(), Where(positions=(0, 1, 2)), Where(positions=(-3, -2, -1)), Where(token_ids=(0,))):
        assert where.mask(positions, prompt, ids)[0].tolist() == [False, True, True]
    assert Where(first_token=True, positions=(-3,)).mask(positions, prompt, ids)[0].tolist() == [True, False, False]


def test_prompt_and_generated_part_the_sequence() -> None:
    positions, prompt, ids = torch.arange(9)[None], torch.tensor([[4]]), torch.zeros(1, 9, dtype=torch.long)
    parts = [Where(scope=scope, first_token=True).mask(positions, prompt, ids) for scope in ("prompt", "generated")]
    assert (parts[0] ^ parts[1]).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"start": -1},
        {"start": 2, "stop": 2},
        {"stop": 0},
        {"stop": -1},
        {"positions": ()},
        {"token_ids": ()},
        {"scope": "promt"},
        {"scope": "Prompt"},
    ],
    ids=repr,
)
def test_a_where_that_means_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Where(**fields)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError):
        Where(stat=3)  # type: ignore[call-arg]


@few
@given(wheres())
def test_equal_wheres_are_one_key(where: Where) -> None:
    assert len({where, TypeAdapter(Where).validate_python(TypeAdapter(Where).dump_python(where, mode="json"))}) == 1


@few
@given(schedule=schedules, rows=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=3))
def test_gains_equal_the_plain_formula(schedule: Schedule, rows: list[list[int]]) -> None:
    gains = schedule.gains(torch.tensor(rows))
    assert gains.dtype == torch.float32
    expected = torch.tensor([[gain_of(schedule, index) for index in row] for row in rows])
    torch.testing.assert_close(gains, expected, rtol=1e-5, atol=1e-5)


@few
@given(schedule=schedules)
def test_gains_of_a_token_alone_are_those_among_others_bit_for_bit(schedule: Schedule) -> None:
    index = torch.arange(35).reshape(5, 7)
    together = schedule.gains(index)
    alone = [[schedule.gains(index[row : row + 1, at : at + 1])[0, 0] for at in range(7)] for row in range(5)]
    assert torch.equal(together, torch.stack([torch.stack(row) for row in alone]))


def test_a_ramp_begins_and_ends_where_it_says() -> None:
    index = torch.arange(8)[None]
    assert Ramp(tokens=4).gains(index)[0].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert Ramp(tokens=2, start=1.0, end=-1.0).gains(index)[0].tolist()[:4] == [1.0, 0.0, -1.0, -1.0]


def test_decay_halves() -> None:
    gains = Decay(half_life_tokens=2.0, floor=0.5).gains(torch.tensor([[0, 2, 4, 2000]]))[0].tolist()
    assert gains == pytest.approx([1.0, 0.75, 0.625, 0.5])


@pytest.mark.parametrize("half_life", [1e-300, 1e-46, 1e-3, 1e3, 1e300])
def test_gains_are_finite_for_every_schedule_that_is_accepted(half_life: float) -> None:
    try:
        schedule = Decay(half_life_tokens=half_life)
    except RecipeError:
        return  # To refuse what float32 cannot hold is right too.
    assert schedule.gains(torch.tensor([[0, 1, 1000]])).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Ramp, {"tokens": 0}),
        (Ramp, {"tokens": -3}),
        (Ramp, {"tokens": 3, "start": math.nan}),
        (Ramp, {"tokens": 3, "end": math.inf}),
        (Decay, {"half_life_tokens": 0.0}),
        (Decay, {"half_life_tokens": -1.0}),
        (Decay, {"half_life_tokens": math.inf}),
        (Decay, {"half_life_tokens": 1.0, "floor": math.nan}),
    ],
    ids=repr,
)
def test_schedules_that_mean_nothing_are_refused(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        kind(**fields)
