"""What is read together: every token that is needed, once, within the bounds, and shared where that pays."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tests.engine.rig import push

from steersman.engine import reading_plan
from steersman.engine.reading_plan import Row, Stretch, batches, common_head, stretches
from steersman.steering.recipe import Recipe


def row(index: int, prompt: tuple[int, ...], answer: tuple[int, ...], recipe: Recipe | None = None) -> Row:
    return Row(index, (*prompt, *answer), len(prompt), recipe, 1.0, {})


def some_rows(count: int = 60) -> list[Row]:
    """A few system prompts, more questions, many answers; some steered."""
    choose = random.Random(0)
    recipes = [None, push(), push(1)]
    systems = [tuple(choose.choices(range(50), k=length)) for length in (1, 9, 30)]
    asked = [(*choose.choice(systems), *choose.choices(range(50), k=choose.randint(1, 40))) for _ in range(12)]
    return [
        row(i, choose.choice(asked), tuple(choose.choices(range(50), k=choose.randint(1, 12))), choose.choice(recipes))
        for i in range(count)
    ]


def passes_of(rows: list[Row]) -> list[list[Stretch]]:
    found = list(batches(stretches(rows)))
    return [*found, *(tails for batch in found for tails in batches([tail for part in batch for tail in part.tails]))]


def test_every_token_of_every_answer_is_predicted_once() -> None:
    rows = some_rows()
    wanted = Counter((each.index, at) for each in rows for at in range(each.start - 1, len(each.ids) - 1))
    parts = [part for batch in passes_of(rows) for part in batch]
    assert wanted == Counter((r.index, at) for part in parts for r in part.rows for at in range(part.first, part.stop))


def test_rows_of_a_stretch_are_alike_up_to_its_end_and_steered_alike() -> None:
    for part in (part for batch in passes_of(some_rows()) for part in batch):
        assert {each.ids[: part.stop] for each in part.rows} == {part.ids}
        assert len({(id(each.recipe), each.start) for each in part.rows}) == 1
        assert all(tail.start == part.stop and tail.rows[0] in part.rows for tail in part.tails)


def test_no_batch_exceeds_its_bounds_and_its_head_is_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_plan, "_MAX_ROWS", 9)
    monkeypatch.setattr(reading_plan, "_MAX_SLAB_TOKENS", 300)
    for batch in passes_of(some_rows()):
        assert len(batch) <= 9
        assert len(batch) * max(part.stop for part in batch) <= 300
        head = common_head(batch)
        assert len({part.ids[:head] for part in batch}) == 1
        assert head < min(part.rows[0].start for part in batch)


def test_prompts_are_shared_only_where_that_pays() -> None:
    prompt = tuple(range(24))
    # One pass more costs what it would save.
    assert [part.tails for part in stretches([row(0, prompt, (1, 2)), row(1, prompt, (3, 4))])] == [(), ()]
    (stem,) = stretches([row(index, prompt, (index, 2)) for index in range(8)])
    assert (stem.start, stem.stop, len(stem.tails)) == (0, 24, 8)
    # What does not pay for one question pays for many.
    many = [row(2 * n + k, (n, *prompt), (k, 4)) for n in range(6) for k in range(2)]
    assert len(stretches(many)) == 6


def test_only_what_is_steered_alike_is_shared() -> None:
    prompt, steered = tuple(range(40)), [push(), push(1), None]
    rows = [row(index, prompt, (1, 2, 3), steered[index % 3]) for index in range(9)]
    assert sorted(len(part.rows) for part in stretches(rows)) == [3, 3, 3]
    weaker = [Row(each.index, each.ids, each.start, each.recipe, 0.5, {}) if each.index < 3 else each for each in rows]
    # The strength of what does not steer is none.
    assert sorted(len(part.rows) for part in stretches(weaker)) == [1, 1, 2, 2, 3]
