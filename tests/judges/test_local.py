"""The local judge puts behaviour and coherence together, as each gives them alone, in one go."""

from __future__ import annotations

import json
import math
from importlib import resources

import pytest
from tests.engine.rig import Passes, make_engine, model_of, prompts
from tests.sae.index.toy_index import WordEncoder

from steersman.auto.facts import Behaviour
from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.errors import DataError, RequestError
from steersman.judges import local
from steersman.judges.coherence import coherences
from steersman.judges.facts import Answered, Judge
from steersman.judges.likelihood import NEUTRAL, TOLD, behaviour_scores, score, sentence
from steersman.judges.local import LocalJudge, QuickJudge
from steersman.models.language_model import LanguageModel, chat


def some_answers() -> list[Answered]:
    texts = prompts(7)
    return [Answered(f"tell me of {text}", answer) for text, answer in zip(texts, [*texts[1:], ""], strict=True)]


def test_verdicts_are_those_of_the_parts() -> None:
    engine, encoder, items = make_engine(model_of("llama")), WordEncoder(), some_answers()
    judge: Judge = LocalJudge(engine, encoder)
    found = judge.judge("speak softly", items)
    scores, wholes = behaviour_scores(engine, "speak softly", items), coherences(engine, encoder, items)
    for verdict, value, whole in zip(found, scores, wholes, strict=True):
        assert math.isclose(verdict.behaviour or 0.0, value, abs_tol=1e-3)
        assert math.isclose(verdict.coherence or 0.0, whole.score, abs_tol=1e-3)
        assert verdict.missing is None
    assert (found[-1].behaviour, found[-1].coherence, found[-1].critique) == (0.0, 0.0, "empty")
    assert judge.judge("speak softly", items) == found
    assert judge.judge("speak softly", []) == []


def test_answers_are_read_in_a_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama")), Passes(monkeypatch)
    LocalJudge(engine, WordEncoder()).judge("speak softly", some_answers()[:6])
    assert len(passes.shapes) < 12


def test_what_was_judged_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, items = make_engine(model_of("llama")), some_answers()
    judge = LocalJudge(engine, WordEncoder())
    first = judge.judge("speak softly", items[:5])
    passes = Passes(monkeypatch)
    assert judge.judge("speak softly", [*items[:5], items[2], *items[:5][::-1]]) == [*first, first[2], *first[::-1]]
    assert passes.shapes == []
    assert judge.judge("speak up", items[:5]) != first
    monkeypatch.setattr(local, "_REMEMBERED", 3)
    for item, verdict in zip(items[:5], first, strict=True):
        assert math.isclose(
            judge.judge("speak softly", [item])[0].behaviour or 0.0, verdict.behaviour or 0.0, abs_tol=1e-3
        )


@pytest.mark.parametrize("quick", [False, True])
def test_what_cannot_be_judged_is_refused(quick: bool) -> None:
    engine = make_engine(model_of("llama"))
    judge: Judge = QuickJudge(engine) if quick else LocalJudge(engine, WordEncoder())
    with pytest.raises(DataError, match="behaviour is empty"):
        judge.judge(" ", [Answered("a", "b")])
    with pytest.raises(RequestError, match="prompt is empty"):
        judge.judge("speak softly", [Answered(" ", "b")])


def test_the_quick_judge_reads_twice_and_asks_no_more_of_the_form_than_the_other() -> None:
    engine, items = make_engine(model_of("llama")), some_answers()
    judge: Judge = QuickJudge(engine)
    found = judge.judge("speak softly", [*items, items[0]])
    assert found[-1] == found[0]
    assert (found[6].behaviour, found[6].coherence, found[6].critique) == (0.0, 0.0, "empty")
    asks = [
        AnswerItem(prompt=chat(items[0].prompt, system), answer=items[0].answer)
        for system in (TOLD[0].format(behaviour=sentence("speak softly")), NEUTRAL)
    ]
    told, plain = (float(each.mean()) for each in answer_logprobs(engine, asks))
    assert math.isclose(found[0].behaviour or 0.0, score(told - plain), abs_tol=1e-3)
    loop = judge.judge("speak softly", [Answered("tell me", "over and over and over and over and over and over")])
    assert (loop[0].coherence or 0.0) < 0.5 < (found[0].coherence or 0.0)


@pytest.mark.model
def test_the_quick_judge_tells_what_was_asked_for_from_what_was_not(bundled: LanguageModel) -> None:
    items = [
        Answered("What is the sea?", "Arr, matey, the sea be a pirate's home, full o' treasure, ye landlubber!"),
        Answered("What is the sea?", "The sea is a large body of salt water that covers most of the Earth."),
    ]
    pirate, plain = QuickJudge(Engine(bundled)).judge("Talk like a pirate.", items)
    assert (pirate.behaviour or 0.0) > (plain.behaviour or 0.0) + 0.2


def test_the_behaviours_that_ship_are_twenty_different_ones() -> None:
    entry = resources.files("steersman") / "data" / "behaviours.jsonl"
    items = [json.loads(line) for line in entry.read_text(encoding="utf-8").splitlines()]
    made = [Behaviour(description=item["description"], opposite=item["opposite"]) for item in items]
    assert len({item["name"] for item in items}) == len({each.description for each in made}) == 20
    assert all(set(item) == {"name", "description", "opposite"} for item in items)
