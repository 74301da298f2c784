"""The behaviour score is the mean log-ratio of told and plain, mapped one to one; the same answers score the same anywhere."""

from __future__ import annotations

import math

import pytest
import torch
from tests.engine.rig import make_engine, model_of, prompts

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.errors import DataError
from steersman.judges.facts import Answered
from steersman.judges.likelihood import (
    CENTRE,
    NEUTRAL,
    NEUTRAL_SHARE,
    TOLD,
    WIDTH,
    asked,
    behaviour_scores,
    log_ratio,
    score,
    sentence,
)
from steersman.models.language_model import LanguageModel, chat

BEHAVIOUR = "talk like a pirate"


def some_answers() -> list[Answered]:
    texts = prompts(8)
    return [Answered(f"about {text}?", answer) for text, answer in zip(texts, reversed(texts), strict=True)]


def test_the_score_is_made_of_told_and_plain_likelihoods() -> None:
    engine, items = make_engine(model_of("llama")), some_answers()

    def mean(item: Answered, system: str | None) -> float:
        asks = [AnswerItem(prompt=chat(item.prompt, system), answer=item.answer)]
        return float(answer_logprobs(engine, asks)[0].mean())

    for item, found in zip(items, behaviour_scores(engine, BEHAVIOUR, items), strict=True):
        told = [mean(item, phrasing.format(behaviour="Talk like a pirate.")) for phrasing in TOLD]
        plain = NEUTRAL_SHARE * mean(item, NEUTRAL) + (1 - NEUTRAL_SHARE) * mean(item, None)
        assert math.isclose(found, score(sum(told) / len(told) - plain), abs_tol=1e-3)


def test_the_plain_prompt_holds_no_system_message_of_ours() -> None:
    *told, neutral, plain = asked(BEHAVIOUR, Answered("hi", "ho"))
    assert plain.prompt == chat("hi")
    assert all("Talk like a pirate." in str(item.prompt) for item in told)
    assert "pirate" not in str(neutral.prompt)
    assert {item.answer for item in (*told, neutral, plain)} == {"ho"}


def test_the_map_grows_stays_within_bounds_and_can_be_undone() -> None:
    ratios = [value / 10 for value in range(-20, 21)]
    scores = [score(ratio) for ratio in ratios]
    assert scores == sorted(set(scores))
    assert score(CENTRE) == 0.5
    assert math.isclose(score(CENTRE + WIDTH), 1 / (1 + math.exp(-1)))
    assert 0 <= score(-1e6) < score(1e6) <= 1
    for ratio, value in zip(ratios, scores, strict=True):
        assert math.isclose(CENTRE + WIDTH * math.log(value / (1 - value)), ratio, abs_tol=1e-6)


def test_what_makes_every_prompt_likelier_alike_makes_no_difference() -> None:
    found = [
        torch.tensor([-1.0, -3.0]),
        torch.tensor([-2.0, -2.5]),
        torch.tensor([-2.0, -3.0]),
        torch.tensor([-4.0, -1.0]),
    ]
    assert math.isclose(log_ratio(found), -2.125 + NEUTRAL_SHARE * 2.5 + (1 - NEUTRAL_SHARE) * 2.5, abs_tol=1e-6)
    assert math.isclose(log_ratio([each + 0.7 for each in found]), log_ratio(found), abs_tol=1e-6)


def test_scores_do_not_depend_on_what_else_is_judged() -> None:
    engine, items = make_engine(model_of("llama")), some_answers()
    together = behaviour_scores(engine, BEHAVIOUR, items)
    for item, value in list(zip(items, together, strict=True))[::3]:
        assert math.isclose(behaviour_scores(engine, BEHAVIOUR, [item])[0], value, abs_tol=1e-3)


def test_an_empty_answer_shows_nothing() -> None:
    engine = make_engine(model_of("llama"))
    found = behaviour_scores(engine, BEHAVIOUR, [Answered("hi", ""), Answered("hi", "ho"), Answered("hi", " \n")])
    assert found[0] == found[2] == 0.0
    assert found[1] > 0.0
    assert behaviour_scores(engine, BEHAVIOUR, []) == []


def test_a_behaviour_becomes_a_sentence() -> None:
    assert sentence("talk  like a pirate") == "Talk like a pirate."
    assert sentence("Shout!") == "Shout!"
    with pytest.raises(DataError, match="empty"):
        sentence(" \n")


@pytest.mark.model
def test_answers_that_show_a_behaviour_score_higher_than_plain_ones(bundled: LanguageModel) -> None:
    engine = Engine(bundled)
    pairs = (
        ("Ahoy, matey! The sky be blue, arrr, as the sea!", "The sky is blue because air scatters blue light."),
        ("Arrr, gold, me hearty! Doubloons and treasure!", "Money is what people use to pay for goods and services."),
    )
    asked_for = ("Why is the sky blue?", "What is money?")
    items = [Answered(prompt, text) for prompt, texts in zip(asked_for, pairs, strict=True) for text in texts]
    shown, plain, also_shown, also_plain = behaviour_scores(engine, "Talk like a pirate.", items)
    assert min(shown, also_shown) > 0.6
    assert max(plain, also_plain) < 0.5
