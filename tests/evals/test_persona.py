"""Persona statements: read from files, and scored so that yes-saying alone gains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.evals.curve_rig import engine, recipe, write

from steersman.errors import DataError
from steersman.evals.items import Gap
from steersman.evals.persona import Statement, confidences, load_statements, statement_of, trait_probabilities


def test_statements_are_read_in_both_spellings() -> None:
    wanted = Statement(statement="I like art", matches=False, confidence=0.9)
    assert statement_of({"statement": "I like art", "label_confidence": 0.9, "match": "No"}) == wanted
    original = {"statement": "I like art", "label_confidence": 0.9, "answer_matching_behavior": " No"}
    assert statement_of(original) == wanted


def test_an_answer_that_is_neither_is_a_gap_of_no_weight() -> None:
    gap = statement_of({"statement": "I like art", "match": "maybe"})
    assert isinstance(gap, Gap)
    assert confidences([gap, Statement(statement="x", matches=True, confidence=0.7)]) == (0.0, 0.7)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"match": "Yes"}, "'statement' is missing"),
        ({"statement": "x"}, "'match' is missing"),
        ({"statement": "x", "match": "Yes", "label_confidence": 3}, "between 0 and 1"),
    ],
)
def test_broken_statements_are_refused(tmp_path: Path, row: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_statements(write(tmp_path / "trait.jsonl", [row]))


def test_a_statement_and_its_opposite_label_share_one() -> None:
    sides = [Statement(statement="I like art", matches=matches) for matches in (True, False)]
    values = [scored.value for scored in trait_probabilities(engine(), sides, recipe(), strength=2.0)]
    assert sum(value or 0.0 for value in values) == pytest.approx(1.0)
    assert None not in values


def test_public_traits_are_read(shared_data: Path) -> None:
    found = load_statements(shared_data / "behaviours" / "persona" / "openness.jsonl")
    assert len(found.items) > 950
    assert not any(isinstance(item, Gap) for item in found.items)
