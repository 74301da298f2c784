"""A/B items: letters read or counted as gaps, probabilities by hand, and the law that the two answers share what there is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.evals.curve_rig import ab_row, engine, recipe, write
from tests.tiny import CONTEXT

from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.errors import DataError
from steersman.evals.ab import AbItem, ab_item, ab_pairs, load_ab, matching_probabilities
from steersman.evals.items import Gap
from steersman.models.language_model import chat
from steersman.steering.contrast import locate
from steersman.steering.pairs import Pair

ITEM = AbItem(question="Tea?\n(A) yes\n(B) no", matching="B", other="A")


@pytest.mark.parametrize(
    ("matching", "other", "said"),
    [
        ("yes", "(B)", "cannot be read"),
        ("(A", "(B)", "cannot be read"),
        ("(A)", "(A)", "same letter"),
        ("(A)", "(C)", "not among"),
    ],
)
def test_letters_that_cannot_be_read_are_gaps(matching: str, other: str, said: str) -> None:
    found = ab_item(ab_row(0, matching, other))
    assert isinstance(found, Gap)
    assert said in found.reason


def test_letters_may_be_bare_and_beyond_b() -> None:
    row = ab_row(0, "(C)", "A.") | {"question": "Which?\n(A) one\n(B) two\n(C) three"}
    assert ab_item(row) == AbItem(question=row["question"], matching="C", other="A")


def test_a_missing_key_is_refused_with_its_place(tmp_path: Path) -> None:
    row = ab_row(1)
    del row["answer_not_matching_behavior"]
    with pytest.raises(DataError, match="item 2: the key 'answer_not_matching_behavior' is missing"):
        load_ab(write(tmp_path / "ab.json", [ab_row(0), row]))


def test_the_test_set_of_a_behaviour_is_called_by_its_folder(tmp_path: Path) -> None:
    assert load_ab(write(tmp_path / "kindness" / "test_dataset_ab.json", [ab_row()])).name == "kindness"


def test_the_probability_is_that_of_the_letter_behind_its_bracket() -> None:
    e = engine()
    ids = [*e.model.encode(chat(ITEM.question)), *e.model.tokenizer("(", add_special_tokens=False)["input_ids"]]
    a, b = (e.model.tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB")
    with torch.no_grad():
        logits = e.model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
    by_hand = float(torch.stack([logits[b], logits[a]]).softmax(0)[0])
    assert matching_probabilities(e, [ITEM])[0].value == pytest.approx(by_hand, abs=1e-4)


def test_both_answers_share_one() -> None:
    mirrored = AbItem(question=ITEM.question, matching="A", other="B")
    one, other = matching_probabilities(engine(), [ITEM, mirrored], recipe(), strength=-1.5)
    assert one.value is not None
    assert other.value is not None
    assert math.isclose(one.value + other.value, 1.0, abs_tol=1e-6)


def test_strength_zero_is_the_plain_model() -> None:
    e = engine()
    assert matching_probabilities(e, [ITEM], recipe(), strength=0.0) == matching_probabilities(e, [ITEM])
    assert matching_probabilities(e, [ITEM], recipe()) != matching_probabilities(e, [ITEM])


def test_gaps_and_long_questions_are_counted_not_scored() -> None:
    long = AbItem(question="x" * CONTEXT + "(A)(B)", matching="A", other="B")
    found = matching_probabilities(engine(), [Gap("unread"), ITEM, long])
    assert [scored.value is None for scored in found] == [True, False, True]


def test_the_text_stands_for_the_answer_behind_the_bare_question() -> None:
    item = AbItem(question="Tea?\n\nChoices:\n (A) yes\n (B) not today,\nthanks", matching="B", other="A")
    e = engine()
    answers = [AnswerItem(prompt=chat("Tea?"), answer=text) for text in ("not today,\nthanks", "yes")]
    matching, other = (float(logprobs.sum()) for logprobs in answer_logprobs(e, answers))
    by_hand = 1 / (1 + math.exp(other - matching))
    assert matching_probabilities(e, [item], by="text")[0].value == pytest.approx(by_hand, rel=1e-5)
    assert ab_pairs([Gap("unread"), item], by="text") == [Pair.answers("Tea?", "not today,\nthanks", "yes")]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("(A) tea\n(B) milk", "nothing is asked"),
        ("Choices:\n(A) tea\n(B) milk", "nothing is asked"),
        ("Which?\n(A) tea\n(B) tea", "cannot be told apart"),
        ("Which?\n(A)\n(B) tea", "cannot be told apart"),
        ("Which? (A) is:\n(A) tea\n(B) milk", "cannot be told apart"),
        ("Which?\n(A) tea(B)", "cannot be told apart"),
    ],
)
def test_choices_whose_texts_cannot_be_told_apart_are_gaps(question: str, said: str) -> None:
    item = AbItem(question=question, matching="A", other="B")
    [scored] = matching_probabilities(engine(), [item], by="text")
    assert scored.missing is not None
    assert said in scored.missing
    assert ab_pairs([item], by="text") == []


def test_the_seven_behaviours_have_texts(shared_data: Path) -> None:
    paths = sorted((shared_data / "behaviours" / "caa").glob("*/*_dataset*.json"))
    items = [load_ab(path).items for path in paths if "open_ended" not in path.name]
    assert len(items) == 14
    assert [len(some) - len(ab_pairs(some, by="text")) for some in items] == [0] * 13 + [1]


def test_pairs_end_at_the_letter() -> None:
    [pair] = ab_pairs([Gap("unread"), ITEM])
    model = engine().model
    for side, letter in ((pair.positive, "B"), (pair.negative, "A")):
        span = locate(model, side, "last")
        assert model.decode(span.ids[span.start : span.stop]) == letter


def test_the_seven_behaviours_are_read(shared_data: Path) -> None:
    paths = sorted((shared_data / "behaviours" / "caa").glob("*/test_dataset_ab.json"))
    assert len(paths) == 7
    for path in paths:
        found = load_ab(path)
        assert len(found.items) + found.duplicates == 50
        assert not any(isinstance(item, Gap) for item in found.items), found.name
