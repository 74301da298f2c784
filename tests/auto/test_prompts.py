"""The shipped prompts and questions are what they say, and splits of them share nothing."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steersman.auto.prompts import (
    choice_questions,
    distinct_prompts,
    general_prompts,
    normalised,
    split_prompts,
)
from steersman.errors import DataError

_ALIKE = 0.75
"""Share of common words from which two texts count as the same."""


def _alike(texts: list[str]) -> list[tuple[str, str]]:
    words = {text: set(normalised(text).split()) for text in texts}
    return [
        (one, other)
        for one, other in combinations(texts, 2)
        if len(words[one] & words[other]) > _ALIKE * len(words[one] | words[other])
    ]


def test_general_prompts_are_many_and_none_says_the_same_as_another() -> None:
    prompts = list(general_prompts())
    assert len(prompts) == 160
    assert all(5 <= len(prompt.split()) <= 25 for prompt in prompts)
    assert _alike(prompts) == []


def test_choice_questions_are_sound_and_right_answers_stand_everywhere() -> None:
    questions = choice_questions()
    assert len(questions) == 120
    assert _alike([question.question for question in questions]) == []
    for question in questions:
        assert len({normalised(choice) for choice in question.choices}) == 4
        assert 0 <= question.answer_index < 4
    assert set(Counter(question.answer_index for question in questions).values()) == {30}


def test_the_right_choice_is_not_betrayed_by_its_length() -> None:
    longest = [max(q.choices, key=len) == q.choices[q.answer_index] for q in choice_questions()]
    assert sum(longest) / len(longest) < 0.4


def test_no_prompt_is_also_a_question_of_another_kind() -> None:
    prompts = {normalised(prompt) for prompt in general_prompts()}
    assert not prompts & {normalised(question.question) for question in choice_questions()}


@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 50), st.integers(0, 50))
def test_parts_share_nothing_and_have_the_sizes_asked_for(seed: int, train: int, validation: int, test: int) -> None:
    made = split_prompts(seed, train, validation, test)
    everything = [*made.train, *made.validation, *made.test]
    assert (len(made.train), len(made.validation), len(made.test)) == (train, validation, test)
    assert len(set(map(normalised, everything))) == train + validation + test
    assert set(everything) <= set(general_prompts())


def test_the_seed_decides_the_split_and_the_test_part_does_not_depend_on_the_others() -> None:
    assert split_prompts(3, 8, 4, 6) == split_prompts(3, 8, 4, 6)
    assert split_prompts(3, 8, 4, 6) != split_prompts(4, 8, 4, 6)
    assert split_prompts(3, 8, 4, 6).test == split_prompts(3, 40, 20, 6).test


def test_own_prompts_are_split_without_their_repetitions() -> None:
    own = ["What is rain?", "what is RAIN", " Why?  ", "How so?", "Why"]
    assert distinct_prompts(own) == ["What is rain?", "Why?", "How so?"]
    made = split_prompts(0, 1, 1, 1, own)
    assert {*made.train, *made.validation, *made.test} == {"What is rain?", "Why?", "How so?"}


def test_too_few_prompts_are_refused_with_how_many_there_are() -> None:
    with pytest.raises(DataError, match=r"there are 2 different prompts, but 4 are wanted \(2 train \+ 1 validation"):
        split_prompts(0, 2, 1, 1, ["One?", "Two?", "one"])
    with pytest.raises(DataError, match="160 different prompts, but 161"):
        split_prompts(0, 100, 30, 31)


def test_empty_prompts_and_sizes_below_zero_are_refused() -> None:
    with pytest.raises(DataError, match="prompt 2 is empty"):
        split_prompts(0, 1, 0, 0, ["One?", "  \n"])
    with pytest.raises(DataError, match="validation must be 0 prompts or more, not -1"):
        split_prompts(0, 1, -1, 0)


def test_prompts_without_a_word_are_told_apart() -> None:
    assert distinct_prompts(["?!", "...", "?!"]) == ["?!", "..."]
