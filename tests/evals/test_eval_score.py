"""Grades: the local judge read once for both parts, several judges averaged, gaps where a judge fails and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.evals.eval_rig import PROMPTS, Letters, engine_of
from tests.sae.index.toy_index import WordEncoder

from steersman.evals.behaviours import EvalBehaviour
from steersman.evals.facts import Grade, Written
from steersman.evals.score import Panel, axbench, grade_all, read_locally, verdicts_of
from steersman.evals.store import Ledger
from steersman.judges.coherence import coherences
from steersman.judges.facts import Answered, Judge, Verdict
from steersman.judges.local import LocalJudge
from steersman.models.language_model import LanguageModel

ANSWERS = [(prompt, Written(f"answer {number} 12")) for number, prompt in enumerate(PROMPTS)]
BEHAVIOUR = EvalBehaviour(name="b", description="Count.", criterion="It counts.")


def _panel(model: LanguageModel, *judges: Judge) -> Panel:
    return Panel(engine_of(model), WordEncoder(), judges, BEHAVIOUR)


def test_axbench_by_hand() -> None:
    grade = Grade(behaviour=1.0, coherence=0.2, relevance=0.5, fluency=1.0)
    assert axbench(grade) == pytest.approx(3 / (1 / 2 + 1 / 1 + 1 / 2))
    assert axbench(Grade(behaviour=0.0, coherence=1.0, relevance=1.0, fluency=1.0)) == 0.0
    assert axbench(Grade(behaviour=None, coherence=1.0, relevance=1.0, fluency=1.0, missing="x")) is None


def test_reading_once_gives_what_the_judge_and_the_coherence_give(tiny: LanguageModel) -> None:
    engine, encoder = engine_of(tiny), WordEncoder()
    items = [Answered(prompt, each.text or "") for prompt, each in ANSWERS[:3]] + [Answered("What?", "  ")]
    found = read_locally(engine, encoder, "Count.", items)
    assert [verdict for verdict, _ in found] == LocalJudge(engine, encoder).judge("Count.", items)
    for (_, parts), other in zip(found, coherences(engine, encoder, items), strict=True):
        assert parts.score == pytest.approx(other.score, abs=1e-5)


def test_a_judge_that_fails_on_some_leaves_gaps_there_alone(tiny: LanguageModel, tmp_path: Path) -> None:
    judge = Letters(forbidden="three")
    kept = Ledger(tmp_path / "g.jsonl")
    found = grade_all(_panel(tiny, judge), [*ANSWERS, (PROMPTS[0], Written(None, "it broke"))], kept)
    assert [each.behaviour is None for each in found] == [False, False, True, False, False, False, True]
    assert found[2].missing == "this one is beyond me"
    assert found[2].product is None
    assert found[-1].missing == "no answer: it broke"
    assert len(kept) == 5  # Gaps are asked for again.
    judge.forbidden = None
    calls = len(judge.calls)
    again = grade_all(_panel(tiny, judge), ANSWERS, Ledger(tmp_path / "g.jsonl"))
    assert judge.calls[calls:] == [1]
    assert again[2].behaviour is not None


def test_grades_are_kept_for_a_judge_and_a_behaviour(tiny: LanguageModel, tmp_path: Path) -> None:
    kept, judge = Ledger(tmp_path / "g.jsonl"), Letters()
    first = grade_all(_panel(tiny, judge), ANSWERS, kept)
    assert grade_all(_panel(tiny, judge), ANSWERS, kept) == first
    assert judge.calls == [len(ANSWERS)]
    grade_all(_panel(tiny, Letters(name="other")), ANSWERS, kept)
    assert len(kept) == 2 * len(ANSWERS)


def test_several_judges_are_averaged_and_a_gap_of_one_is_a_gap(tiny: LanguageModel, tmp_path: Path) -> None:
    class Half(Letters):
        def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
            return [
                Verdict(behaviour=None, coherence=None, missing="no")
                if "two" in item.prompt
                else Verdict(behaviour=0.0, coherence=1.0)
                for item in items
            ]

    alone = grade_all(_panel(tiny, Letters()), ANSWERS, Ledger(tmp_path / "a.jsonl"))
    both = grade_all(_panel(tiny, Letters(), Half(name="half")), ANSWERS, Ledger(tmp_path / "b.jsonl"))
    assert both[0].behaviour == pytest.approx((alone[0].behaviour or 0) / 2)
    assert both[1].behaviour is None
    assert both[1].missing == "no"


def test_a_judge_that_answers_too_little_is_no_judge() -> None:
    class Short(Letters):
        def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
            return super().judge(behaviour, items)[:1]

    found = verdicts_of(Short(), "b", [Answered("p", "a"), Answered("q", "b")])
    assert [each.missing for each in found] == [None, None]  # One at a time it does answer.
