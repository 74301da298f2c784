"""Descriptions that ask for two things at once, and those that only look so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steersman.auto.facts import Behaviour
from steersman.auto.opposites import contradiction, exclude_each_other, opposites_among
from steersman.errors import DataError


@pytest.mark.parametrize(
    ("sentence", "pair"),
    [
        ("Be formal and casual.", ("formal", "casual")),
        ("be both very polite and rude at the same time", ("polite", "rude")),
        ("Sound cheerful, but also sad, in every answer.", ("cheerful", "sad")),
        ("Answer in a calm yet angry tone.", ("calm", "angry")),
        ("Be short and write long answers.", ("short", "long")),
        ("Be honest and dishonest", ("honest", "dishonest")),
        ("Be honest, and do not be honest.", ("honest", "not honest")),
        ("Be kind & cruel!", ("kind", "cruel")),
    ],
)
def test_what_contradicts_itself_is_told_of(sentence: str, pair: tuple[str, str]) -> None:
    assert contradiction(sentence) == pair
    with pytest.raises(DataError, match=f"'{pair[0]}' and '{pair[1]}' exclude each other; ask for one of them"):
        Behaviour(description=sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "Be kind, not cruel.",
        "Be warm but never cold.",
        "Be formal and polite.",
        "Talk of happy and of sad days.",
        "Explain simple and complicated words.",
        "Mention both formal and casual clothes.",
        "Tell of someone who was sad once and is now very cheerful again.",
        "Turn rude questions into polite answers.",
        "Be not formal and not casual.",
        "Do not be cruel but kind.",
        "Do not be cruel and kind at the same time.",
        "Never be rude and always polite.",
        "Explain things in a way that children can understand.",
        "",
    ],
)
def test_what_only_looks_so_is_taken(sentence: str) -> None:
    assert contradiction(sentence) is None


@given(st.text(max_size=80))
def test_any_text_is_read(sentence: str) -> None:
    found = contradiction(sentence)
    assert found is None or found[0] in sentence.lower()


def test_a_negation_makes_an_opposite_and_a_short_word_does_not() -> None:
    assert exclude_each_other("polite", "impolite")
    assert exclude_each_other("irrelevant", "relevant")
    assert not exclude_each_other("to", "into")
    assert not exclude_each_other("formal", "formal")


def test_all_pairs_of_a_name_are_found() -> None:
    assert opposites_among(["happy", "sad", "and", "cheerful"]) == [("happy", "sad"), ("sad", "cheerful")]
    assert opposites_among(["honest", "but", "not", "honest"]) == [("honest", "not honest")]


@pytest.mark.parametrize("opposite", ["Talk like a pirate.", "talk  like a PIRATE"])
def test_an_opposite_that_says_the_same_is_refused(opposite: str) -> None:
    with pytest.raises(DataError, match="says the same as the behaviour"):
        Behaviour(description="Talk like a pirate.", opposite=opposite)
