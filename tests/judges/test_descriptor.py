"""Word scores are made of likelihoods and meanings, grow with both, and do not depend on what else is scored."""

from __future__ import annotations

import math

import pytest
from tests.engine.rig import make_engine, model_of, prompts
from tests.sae.index.toy_index import WordEncoder

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.errors import DataError, RequestError
from steersman.judges.descriptor import (
    CENTRE,
    NEUTRAL,
    OTHERS,
    PROMPT,
    SOUNDS,
    TOLD,
    WIDTH,
    DescriptorJudge,
    descriptor,
    on_scale,
)
from steersman.judges.facts import Answered
from steersman.models.language_model import LanguageModel, chat
from steersman.models.sentence_encoder import load_encoder


@pytest.fixture
def judge() -> DescriptorJudge:
    return DescriptorJudge(make_engine(model_of("llama")), WordEncoder())


def test_a_word_score_is_made_of_both_parts(judge: DescriptorJudge) -> None:
    text = prompts(3)[2]

    def mean(word: str) -> float:
        ask = AnswerItem(prompt=chat(PROMPT, TOLD.format(word=word)), answer=text)
        return float(answer_logprobs(judge.engine, [ask])[0].mean())

    def cosine(word: str) -> float:
        one, other = judge.encoder.encode([text, SOUNDS.format(word=word)])
        return float(one @ other)

    [[found]] = judge.score([text], ["gloomy"])
    nats = mean("gloomy") - sum(map(mean, NEUTRAL)) / len(NEUTRAL)
    base = sum(map(cosine, NEUTRAL)) / len(NEUTRAL) + sum(map(cosine, OTHERS)) / len(OTHERS)
    assert math.isclose(found.likelihood, nats, abs_tol=1e-3)
    assert math.isclose(found.meaning, cosine("gloomy") - base / 2, abs_tol=1e-4)
    assert math.isclose(found.score, on_scale(found.likelihood + found.meaning), abs_tol=1e-4)


def test_the_scale_grows_from_0_to_10_and_is_5_at_the_centre() -> None:
    scores = [on_scale(value / 20) for value in range(-30, 31)]
    assert scores == sorted(set(scores))
    assert on_scale(CENTRE) == 5.0
    assert math.isclose(on_scale(CENTRE + WIDTH) + on_scale(CENTRE - WIDTH), 10.0)
    assert 0 <= on_scale(-1e9) < on_scale(1e9) <= 10


def test_word_scores_do_not_depend_on_other_words_and_texts(judge: DescriptorJudge) -> None:
    texts, words = prompts(4), ["gloomy", NEUTRAL[0], "like a pirate"]
    together = judge.score(texts, words)
    assert [[each.word for each in row] for row in together] == [words] * 4
    for number, text in enumerate(texts):
        for at, word in enumerate(words):
            [[alone]] = judge.score([text], [word])
            assert math.isclose(alone.likelihood, together[number][at].likelihood, abs_tol=1e-3)
            assert math.isclose(alone.meaning, together[number][at].meaning, abs_tol=1e-4)
    assert judge.score([], words) == []


def test_a_prompt_is_part_of_what_is_read(judge: DescriptorJudge) -> None:
    [[alone], [same], [asked]] = judge.score(
        ["it rains a lot", Answered(PROMPT, "it rains a lot"), Answered("And the weather?", "it rains a lot")], ["sad"]
    )
    assert math.isclose(alone.likelihood, same.likelihood, abs_tol=1e-3)
    assert not math.isclose(alone.likelihood, asked.likelihood, abs_tol=1e-3)
    assert alone.meaning == pytest.approx(asked.meaning)


def test_a_few_words_make_a_word_and_a_sentence_does_not() -> None:
    assert descriptor("  like \n a pirate ") == "like a pirate"
    assert descriptor("freundlich") == "freundlich"
    for wrong, told in (
        (" \n", "empty"),
        ("Be cheerful in whatever you say", "sentence"),
        ("Be nice.", "sentence"),
        ("x" * 70, "sentence"),
        ("42", "no letter"),
    ):
        with pytest.raises(DataError, match=told):
            descriptor(wrong)


def test_texts_that_cannot_be_scored_are_refused_by_number(judge: DescriptorJudge) -> None:
    with pytest.raises(DataError, match="text 2 is empty"):
        judge.score(["fine so far", " \n"], ["sad"])
    with pytest.raises(RequestError, match=r"text 1 has \d+ tokens; tiny-llama reads \d+"):
        judge.score(["long " * 200], ["sad"])
    with pytest.raises(DataError, match="no word"):
        judge.score(["fine so far"], [])


def test_scores_that_deserve_less_trust_say_so(judge: DescriptorJudge) -> None:
    texts = ["the rain has stopped now", "大雨已经停了", "Rain"]
    notes = [row[0].note for row in judge.score(texts, ["sad"])]
    assert notes[0] is None
    assert "English" in str(notes[1])
    assert "three words" in str(notes[2])
    [[strange]] = judge.score(texts[:1], ["грустный"])
    assert "the word" in str(strange.note)


def test_long_texts_mean_what_their_pieces_mean() -> None:
    model = model_of("llama")
    judge = DescriptorJudge(make_engine(model), WordEncoder())
    short, long = "so sad", " ".join(["so sad"] * 20)
    one, other = judge.score([short, long], ["sad"])
    assert one[0].meaning == pytest.approx(other[0].meaning, abs=1e-4)


@pytest.mark.model
def test_texts_are_most_what_they_were_written_to_be(bundled: LanguageModel) -> None:
    judge = DescriptorJudge(Engine(bundled), load_encoder())
    texts = {
        "cheerful": "Yay, what a wonderful surprise! I could dance all day, thank you so much, you made my week!",
        "formal": "The undersigned hereby requests that the aforementioned documents be submitted without delay.",
    }
    plain = "The shop opens at nine and closes at six."
    rows = judge.score([*texts.values(), plain], list(texts))
    for at, _ in enumerate(texts):
        column = [row[at].score for row in rows]
        assert max(column) == column[at] > 5
        assert column[-1] < 5
