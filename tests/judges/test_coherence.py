"""Each part of coherence tells sensible text from one kind of spoiled text; sensible text in any style passes them all."""

from __future__ import annotations

import math
import random

import pytest
import torch
from tests.engine.rig import make_engine, model_of
from tests.sae.index.toy_index import WordEncoder

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.judges.coherence import (
    ANY_PROMPT,
    NOTHING,
    Coherence,
    coherences,
    cosines,
    fluency,
    form,
    relevance,
    variety,
    weigh,
)
from steersman.judges.facts import Answered
from steersman.models.language_model import LanguageModel, chat
from steersman.models.sentence_encoder import load_encoder

SENSIBLE = (
    "Ahoy, matey! Arrrrr, the sky be blue because the sun's light bounces about in the air, and blue bounces best o' all.",
    "Money is like a ticket that you can swap for things you want, such as apples, toys or a ride on the bus.",
    'Pursuant to Article 4(b), the party of the first part (the "Lessor") shall deliver, within 30 days, the H2O samples.',
    "Roses are red,\nviolets are blue,\nthe sky is a mirror,\nand so are you.",
    "1. Preheat the oven to 180 °C.\n2. Mix 200 g of flour with 3 eggs.\n3. Bake for 20 minutes.",
    "Le ciel est bleu parce que l'air diffuse la lumière bleue plus que la lumière rouge.",
    "空が青いのは、太陽の光が空気の中で散らばるからです。",
    "Небо голубое, потому что воздух рассеивает синий свет сильнее красного.",
    "WOW!!! That is SO exciting! The McDonald's on 5th Street has a new iPhone app! :-)",
    "def add(a, b):\n    return a + b  # adds two numbers",
    "Paris.",
    "42",
)
LOOPS = (
    "The sky is blue because the sky is blue because the sky is blue because the sky is blue because the sky is blue.",
    "yes yes yes yes yes yes yes yes yes yes",
    "Ha" + "hahaha" * 20,
    "I am happy. " * 8,
    "-----------------------------------",
    "So it is........................................",
)


@pytest.mark.parametrize("text", SENSIBLE)
def test_sensible_text_of_any_style_has_variety_and_form(text: str) -> None:
    assert variety(text) > 0.9
    assert form(text) > 0.9


@pytest.mark.parametrize("text", LOOPS)
def test_loops_have_no_variety(text: str) -> None:
    assert variety(text) < 0.3


def test_a_loop_grows_worse_the_longer_it_is() -> None:
    start = (
        "The sky is blue because the air spreads the light of the sun, and that is all there is to say about it today. "
    )
    found = [variety(start + "I like it a lot. " * times) for times in (0, 2, 4, 8, 16)]
    assert found == sorted(found, reverse=True)
    assert found[0] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "... !!! ???",
        "x8k2j9q1 b4d7f2h5 is a",
        "the tHeReFoRe skYbLuEsKy oF aNdTheN",
        "Thequickbrownfoxjumpsoverthelazydogandrunsaway",
        "skжy bluе лightр",
        "\ufffd\ufffd\ufffd the \ufffd\ufffd sky",
        "brzdtkvs lmnprst sky wxzcvbnm",
        "{[(<>)]} ;; -> :: != sky =>",
    ],
)
def test_broken_words_have_no_form(text: str) -> None:
    assert form(text) < 0.4


def test_less_likely_text_is_less_fluent_but_likelier_than_plain_earns_nothing() -> None:
    found = [fluency(-value / 4) for value in range(40)]
    assert found == sorted(found, reverse=True)
    assert fluency(-1.0) - fluency(-1.4) < 0.01
    assert fluency(-2.3) > 0.9
    assert fluency(-5.1) < 0.05
    assert 0 <= fluency(-1e9) < 1e-9


def test_relevance_grows_with_both_its_measures() -> None:
    for cosine in (-0.2, 0.0, 0.5, 1.0):
        found = [relevance(value / 10, cosine) for value in range(-20, 21)]
        assert found == sorted(found)
        assert relevance(0.2, cosine) <= relevance(0.2, cosine + 0.1)
    assert relevance(-0.3, 0.1) < 0.05
    assert relevance(0.4, 0.0) > 0.95  # In another language than the prompt.
    assert relevance(0.1, 0.6) > 0.95


def test_the_score_is_the_product_and_the_complaint_names_what_is_low() -> None:
    whole = Coherence(fluency=0.4, variety=1.0, relevance=0.25, form=1.0)
    assert math.isclose(whole.score, 0.1)
    assert whole.complaint == "unlikely words, not about the prompt"
    assert Coherence(fluency=1.0, variety=1.0, relevance=1.0, form=1.0).complaint == ""
    assert NOTHING.score == 0.0


def test_coherences_weigh_the_plain_likelihood_and_the_likeness_of_each_answer() -> None:
    engine, encoder = make_engine(model_of("llama")), WordEncoder()
    items = [Answered("why is the sky blue", text) for text in ("the sky is blue", " ", "no", "", "a sky, a blue sky")]
    found = coherences(engine, encoder, items)
    full = [item for item in items if item.answer.strip()]
    plain, elsewhere = (
        answer_logprobs(engine, [AnswerItem(prompt=chat(prompt or item.prompt), answer=item.answer) for item in full])
        for prompt in ("", ANY_PROMPT)
    )
    made = [
        weigh(item.answer, *rest) for item, *rest in zip(full, plain, elsewhere, cosines(encoder, full), strict=True)
    ]
    places = iter(made)
    for item, whole in zip(items, found, strict=True):
        expected = next(places) if item.answer.strip() else NOTHING
        assert math.isclose(whole.relevance, expected.relevance, abs_tol=1e-3)
        assert math.isclose(whole.fluency, expected.fluency, abs_tol=1e-3)
        assert (whole.variety, whole.form) == (expected.variety, expected.form)
    assert coherences(engine, encoder, []) == []


def test_a_verdict_does_not_depend_on_what_else_is_judged() -> None:
    engine, encoder = make_engine(model_of("llama")), WordEncoder()
    items = [Answered(f"tell me about {word}", f"{word} is a thing") for word in ("tea", "the moon", "rice and salt")]
    for item, whole in zip(items, coherences(engine, encoder, items), strict=True):
        alone = coherences(engine, encoder, [item])[0]
        assert math.isclose(alone.score, whole.score, abs_tol=1e-4)


@pytest.mark.model
def test_steered_text_passes_and_spoiled_text_does_not(bundled: LanguageModel) -> None:
    engine, encoder = Engine(bundled), load_encoder()
    asked = "What is the internet?"
    # Written by the bundled model: plain, steered for children, and as a pirate.
    good = (
        "The internet is a global network of interconnected computers and servers that allows users to share information.",
        "The internet is like a big chatroom on computers that people can use to talk and share information.",
        "The internet, me hearty! It's a vast network of computers that be connected to each other, sharing information.",
    )
    words = good[1].split()
    random.Random(1).shuffle(words)
    bad = (
        " ".join(words),
        "The internet is a network. " * 6,
        "Roses need sun and water, and they like to be cut in spring, when the frost is over.",
        "",
        "the tHeReFoRe inTeRnEt x8k2j9 -en -en brzdtkvs",
    )
    found = coherences(engine, encoder, [Answered(asked, text) for text in (*good, *bad)])
    assert min(whole.score for whole in found[:3]) > 0.6
    assert max(whole.score for whole in found[3:]) < 0.2
    for whole, words in zip(found[3:6], ("unlikely words", "repeats itself", "not about the prompt"), strict=True):
        assert words in whole.complaint


def test_tensors_of_one_token_are_weighed_too() -> None:
    assert weigh("Paris", torch.tensor([-0.5]), torch.tensor([-3.0]), 0.6).score > 0.9
