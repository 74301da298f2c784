"""Multiple-choice files of every known form become the same questions; broken ones are refused with their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.evals.curve_rig import engine, recipe, write
from tests.tiny import CONTEXT

from steersman.engine.likelihood import AnswerItem, ChoiceQuestion, answer_logprobs, choose
from steersman.errors import DataError
from steersman.evals.capability import right_choices
from steersman.evals.choice_files import ContextQuestion, load_choices, question_of
from steersman.evals.items import Gap

FORMS: dict[str, tuple[dict[str, Any], ChoiceQuestion | ContextQuestion]] = {
    "ours": (
        {"question": "Why?", "choices": ["a", "b"], "answer": 1},
        ChoiceQuestion(question="Why?", choices=("a", "b"), answer_index=1),
    ),
    "arc": (
        {"query": "Question: Why?", "choices": ["a", "b"], "gold": 0},
        ChoiceQuestion(question="Why?", choices=("a", "b"), answer_index=0),
    ),
    "boolq": (
        {"query": "Passage: It rains.\nQuestion: does it rain?", "choices": ["no", "yes"], "gold": 1},
        ChoiceQuestion(question="Passage: It rains.\ndoes it rain?", choices=("no", "yes"), answer_index=1),
    ),
    "mmlu": (
        {
            "prompt": "Find x.\n\nChoices:\n(A) 1\n(B) 2",
            "correct": "(B)",
            "incorrect": "(A)",
            "correct_full_text": "2",
            "incorrect_full_text": "1",
            "category": "algebra",
        },
        ChoiceQuestion(question="Find x.", choices=("1", "2"), answer_index=1),
    ),
    "truthfulqa": (
        {"question": "What if?", "mc1_targets": {"right": 1, "alas": 0, "wrong": 0}, "mc2_targets": {}},
        ChoiceQuestion(question="What if?", choices=("alas", "right", "wrong"), answer_index=1),
    ),
    "winogrande": (
        {"context_options": ["Ann sings as Ann", "Ann sings as Bea"], "continuation": "is glad.", "gold": 0},
        ContextQuestion(contexts=("Ann sings as Ann", "Ann sings as Bea"), continuation="is glad.", answer_index=0),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str) -> None:
    row, wanted = FORMS[form]
    assert question_of(row) == wanted


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "Why?", "choices": ["a", "b"], "gold": 2}, "choices 0 to 1, not 2"),
        ({"query": "Why?", "choices": ["a", "b"]}, "'gold' must be the number"),
        ({"query": "Why?", "choices": ["a", ""], "gold": 0}, "none of them empty"),
        ({"query": "Why?", "gold": 0}, "'choices' must be a list"),
        ({"quary": "Why?", "choices": ["a", "b"], "gold": 0}, "'question' is missing"),
        ({"question": "Why?", "mc1_targets": {"a": 0, "b": 0}}, "exactly one of them"),
        ({"context_options": ["a", "b"], "continuation": "c", "gold": True}, "'gold' must be the number"),
        ({"context_options": ["a", "b"], "continuation": "c", "gold": 4}, "between 0 and 1"),
        ({"prompt": "Why?", "correct": "(A)", "incorrect": "(B)"}, "'correct_full_text' is missing"),
    ],
)
def test_broken_questions_are_refused_with_their_place(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    good = FORMS["ours"][0]
    with pytest.raises(DataError, match="line 2") as caught:
        load_choices(write(tmp_path / "bad.jsonl", [good, row]))
    assert said in str(caught.value)


def test_mixed_questions_score_as_each_alone_and_as_choose() -> None:
    e, questions = engine(), [question for _, question in FORMS.values()]
    together = [scored.value for scored in right_choices(e, questions, recipe())]
    alone = [right_choices(e, [question], recipe())[0].value for question in questions]
    assert together == alone
    by_choice = [question for question in questions if isinstance(question, ChoiceQuestion)]
    chosen = choose(e, by_choice, recipe())
    right = [float(index == question.answer_index) for index, question in zip(chosen, by_choice, strict=True)]
    assert right == [v for v, q in zip(together, questions, strict=True) if isinstance(q, ChoiceQuestion)]


def test_a_context_is_chosen_by_what_it_makes_of_the_ending() -> None:
    e, question = engine(), FORMS["winogrande"][1]
    assert isinstance(question, ContextQuestion)
    sums = [
        float(answer_logprobs(e, [AnswerItem(prompt=context, answer=" is glad.")])[0].sum())
        for context in question.contexts
    ]
    assert right_choices(e, [question])[0].value == float(sums[0] > sums[1])


def test_a_question_that_does_not_fit_is_a_gap_and_costs_no_other() -> None:
    short = FORMS["ours"][1]
    long = ChoiceQuestion(question="x" * CONTEXT, choices=("a", "b"), answer_index=0)
    found = right_choices(engine(), [short, long, Gap("unread"), short])
    assert [scored.value is None for scored in found] == [False, True, True, False]
    assert "tokens" in str(found[1].missing)
    assert found[2].missing == "unread"


def test_public_files_are_read_whole(shared_data: Path) -> None:
    counts = {path.stem: len(load_choices(path).items) for path in (shared_data / "choice_tests").glob("*.json*")}
    assert counts["arc_easy"] == 500
    assert counts["truthfulqa_mc"] > 800
    assert min(counts.values()) >= 99
