"""Personas: pairs that differ in nothing else, and recipes that are as long as they say."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.errors import DataError, ModelError
from steersman.models.language_model import LanguageModel, chat
from steersman.models.residuals import measure_profile
from steersman.steering.edits import Add
from steersman.steering.methods import lat
from steersman.steering.personas import (
    FEW_OPENINGS,
    LENGTH,
    MOST_PAIRS,
    default_openings,
    enough_openings,
    fit_trait,
    middle_layers,
    persona_pairs,
)
from steersman.steering.recipe import Recipe, combine

GOOD, BAD = ["cheerful", "happy go lucky"], ["gloomy", "bitter"]


def strengths(recipe: Recipe) -> list[float]:
    return [edit.strength for edit in recipe.edits if isinstance(edit, Add)]


def test_sides_differ_in_the_persona_alone() -> None:
    for pair in persona_pairs(GOOD, BAD, ["When I woke up,", "Well,"]):
        assert not isinstance(pair.positive, str)
        assert not isinstance(pair.negative, str)
        (asked, answered), (other, same) = pair.positive, pair.negative
        assert answered == same
        [(good, bad)] = [(g, b) for g, b in zip(GOOD, BAD, strict=True) if g in asked["content"]]
        assert asked["content"].replace(good, "") == other["content"].replace(bad, "")


def test_every_prompt_meets_every_pair_of_examples_once() -> None:
    pairs = persona_pairs(GOOD, BAD, ["One", "Two", "One", "", "  "])
    assert len(pairs) == 4
    assert len({str(pair) for pair in pairs}) == 4


def test_the_shorter_list_begins_again() -> None:
    pairs = persona_pairs(["a", "b", "c"], ["x"], ["Well,"])
    assert [str(pair.negative) for pair in pairs] == [str(pairs[0].negative)] * 3


def test_what_somebody_says_is_quoted_and_what_somebody_is_is_not() -> None:
    said, been = persona_pairs(["I love it!", "kind"], ["I hate it.", "cruel"], ["Well,"])
    assert '"I love it!"' in str(said.positive)
    assert '"kind"' not in str(been.positive)


def test_too_many_pairs_are_thinned_evenly() -> None:
    openings = [f"Opening {n}" for n in range(500)]
    pairs = persona_pairs(GOOD, BAD, openings)
    assert len(pairs) == MOST_PAIRS
    assert "Opening 0" in str(pairs[0])
    assert "Opening 49" in str(pairs[-1])


@pytest.mark.parametrize(
    ("good", "bad", "openings", "why"),
    [
        ([], ["x"], None, "positive examples are missing"),
        (["a"], [" "], None, "one of them is empty"),
        (["same"], ["same"], None, "shows the trait or does not"),
        (["a"], ["b"], ["", " "], "no openings"),
        (["a"], ["b"], ["Well,"], "too few"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(
    good: list[str], bad: list[str], openings: list[str] | None, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        persona_pairs(good, bad, openings)


def test_openings_that_ship_are_different_and_say_nothing_yet() -> None:
    openings = default_openings()
    assert len(set(openings)) == len(openings) >= 20
    assert not [text for text in openings if text[-1] in ".!?"]


def test_few_openings_are_joined_by_those_that_ship_and_enough_are_not() -> None:
    shipped = default_openings()
    assert enough_openings(None) == shipped
    assert enough_openings([" The sea ", "", "The sea", shipped[3]]) == (
        "The sea",
        shipped[3],
        *shipped[:3],
        *shipped[4:],
    )
    own = tuple(f"Opening {n}" for n in range(FEW_OPENINGS))
    assert enough_openings(own) == own
    assert enough_openings(own[1:]) == (*own[1:], *shipped)
    assert enough_openings(["", " "]) == ()


@pytest.mark.parametrize("n_layers", [1, 2, 4, 12, 28, 30, 32, 80, 126])
def test_middle_layers_are_in_the_middle_of_any_model(n_layers: int) -> None:
    layers = middle_layers(n_layers)
    assert 1 <= len(layers) <= 12
    assert list(layers) == sorted(set(layers))
    assert set(layers) <= set(range(n_layers))
    if n_layers >= 12:
        assert n_layers / 5 <= layers[0]
        assert layers[-1] < 2 * n_layers / 3


@pytest.mark.parametrize("method", ["lat", "caa"])
def test_every_trait_is_as_long_as_any_other(tiny: LanguageModel, method: str) -> None:
    profile = measure_profile(tiny)
    for good, bad in ((GOOD, BAD), (["a"], ["zzzzzzzzzzzz"])):
        pairs = persona_pairs(good, bad, ["Well,", "If you ask me,"])
        recipe = fit_trait(tiny, pairs, profile=profile, name="x", method=method, layers=[1, 2])
        assert recipe.layers == (1, 2)
        assert sum(strengths(recipe)) == pytest.approx(LENGTH)
        recipe.check_fits(tiny)


def test_only_the_length_differs_from_the_method(tiny: LanguageModel) -> None:
    profile, pairs = measure_profile(tiny), persona_pairs(GOOD, BAD, ["Well,", "So"])
    plain = lat.fit(tiny, pairs, profile=profile, layers=[1, 2], name="x")
    recipe = fit_trait(tiny, pairs, profile=profile, name="x", layers=[1, 2])
    factor = LENGTH / sum(strengths(plain))
    assert strengths(recipe) == pytest.approx([factor * each for each in strengths(plain)])
    for ours, theirs in zip(recipe.edits, plain.edits, strict=True):
        assert isinstance(ours, Add)
        assert isinstance(theirs, Add)
        assert ours.vector == theirs.vector


def test_swapped_sides_turn_it_round(tiny: LanguageModel) -> None:
    profile = measure_profile(tiny)
    one, other = (
        fit_trait(tiny, persona_pairs(*sides, ["Well,", "So"]), profile=profile, name="x", layers=[2])
        for sides in ((GOOD, BAD), (BAD, GOOD))
    )
    [a], [b] = one.edits, other.edits
    assert isinstance(a, Add)
    assert isinstance(b, Add)
    torch.testing.assert_close(a.vector.tensor, -b.vector.tensor, atol=1e-4, rtol=1e-3)


def test_a_model_without_a_chat_template_reads_texts(tiny: LanguageModel) -> None:
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    plain = dataclasses.replace(tiny, tokenizer=tokenizer)
    pairs = persona_pairs(GOOD, BAD, ["Well,"], chat=False)
    recipe = fit_trait(plain, pairs, profile=measure_profile(tiny), name="x")
    assert recipe.data["read"] == "last"


def test_unknown_methods_and_layers_are_refused(tiny: LanguageModel) -> None:
    profile, pairs = measure_profile(tiny), persona_pairs(GOOD, BAD, ["Well,"])
    with pytest.raises(DataError, match="did you mean 'lat'"):
        fit_trait(tiny, pairs, profile=profile, name="x", method="lta")
    with pytest.raises(ModelError):
        fit_trait(tiny, pairs, profile=profile, name="x", layers=[99])


@pytest.mark.model
def test_a_trait_shows_at_one_and_stays_sensible_at_two(bundled: LanguageModel) -> None:
    engine = Engine(bundled)
    pairs = persona_pairs(["optimistic", "happy go lucky", "cheerful"], ["pessimistic", "gloomy", "negative"])
    recipe = fit_trait(bundled, pairs, profile=engine.profile, name="optimistic")
    question = chat("You're invited to speak at an event in front of a large audience.")
    sampling = Sampling(max_tokens=32, repetition_penalty=1.1)
    multipliers = (0.0, 1.0, 2.0, -2.0)
    results = engine.generate(
        [Request(prompt=question, recipe=recipe, strength=m, sampling=sampling) for m in multipliers]
    )
    texts = [result.text for result in results]
    assert len(set(texts)) == len(texts)
    for text in texts:  # Words in plain letters, not the noise that too much of it makes.
        assert sum(char.isascii() and (char.isalpha() or char in " ,.'!?") for char in text) > 0.9 * len(text)
    assert combine([1.0 * recipe, -1.0 * recipe]).edits
