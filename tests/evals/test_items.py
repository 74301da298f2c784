"""Items read from files: the same from JSON and JSONL, refused with their place, sampled by a seed, gaps counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.evals.curve_rig import write

from steersman.errors import DataError, RecipeMismatch, RequestError
from steersman.evals.items import Gap, Scored, each_or_gap, load_items, scored_items, text_of

ROWS = [{"x": f"item {number}"} for number in range(12)]


def parse(row: dict[str, Any]) -> str | Gap:
    return Gap("odd") if "odd" in row else text_of(row, "x")


def test_json_and_jsonl_hold_the_same(tmp_path: Path) -> None:
    one, other = (load_items(write(tmp_path / name, ROWS), parse) for name in ("a.json", "a.jsonl"))
    assert one.items == other.items == tuple(row["x"] for row in ROWS)
    assert one.sha256 == other.sha256


def test_repeated_items_count_once_and_gaps_are_kept_apart(tmp_path: Path) -> None:
    rows = [*ROWS[:2], ROWS[0], {"odd": 1}, {"odd": 2}, {"odd": 2}]
    found = load_items(write(tmp_path / "a.jsonl", rows), parse)
    assert (len(found.items), found.duplicates) == (4, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no items"),
        ("{not json", "line 1: no valid JSON"),
        ('{"x": "a"}\n[1]', "line 2: not a JSON object"),
        ('{"x": "a"}\n\n{"y": "b"}', "line 3: the key 'x' is missing"),
        ('{"x": " "}', "'x' must be a text"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        load_items(path, parse)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read items"):
        load_items(tmp_path / "none.json", parse)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        load_items(tmp_path / "b.jsonl", parse)


def test_a_larger_sample_holds_the_smaller_one_in_the_files_order(tmp_path: Path) -> None:
    whole = load_items(write(tmp_path / "a.json", ROWS), parse)
    few, more = whole.sample(3, seed=5), whole.sample(7, seed=5)
    assert set(few.items) < set(more.items) < set(whole.items)
    assert list(more.items) == [item for item in whole.items if item in more.items]
    assert whole.sample(3, seed=6).items != few.items
    assert whole.sample(None) is whole.sample(99) is whole
    with pytest.raises(DataError, match="1 or more"):
        whole.sample(0)


def test_one_refused_item_costs_no_other() -> None:
    def score(some: Sequence[int]) -> list[float]:
        if any(number % 5 == 3 for number in some):
            raise RequestError("no threes")
        return [number / 2 for number in some]

    found = each_or_gap(range(10), score)
    assert [i for i, value in enumerate(found) if isinstance(value, Gap)] == [3, 8]
    assert [value for value in found if not isinstance(value, Gap)] == [i / 2 for i in range(10) if i % 5 != 3]
    assert scored_items([1, Gap("unread"), 3], score) == [
        Scored(0.5),
        Scored(None, "unread"),
        Scored(None, "no threes"),
    ]


def test_what_meets_every_item_alike_is_raised() -> None:
    def score(some: Sequence[int]) -> list[float]:
        raise RecipeMismatch("another model")

    with pytest.raises(RecipeMismatch):
        each_or_gap([1, 2], score)


def test_a_score_is_there_or_has_a_reason() -> None:
    with pytest.raises(DataError):
        Scored(None)
    with pytest.raises(DataError):
        Scored(1.0, "why")
