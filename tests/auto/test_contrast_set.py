"""Positives are chosen by the judge, and what is no positive is dropped and counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from steersman.auto.contrast_set import PHRASINGS, from_examples, make_contrast_set, phrasings, system_prompt
from steersman.auto.examples import written_examples
from steersman.auto.facts import Behaviour, ContrastItem
from steersman.auto.prompts import Prompts
from steersman.engine.engine import Engine
from steersman.errors import DataError
from steersman.judges.facts import Answered, Verdict
from steersman.models.asking import Messages
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import measure_profile

_ARR = Behaviour(description="Talk like a pirate.")


class CountsArr:
    """Behaviour is the number of times an answer says arr, up to four."""

    name = "arr"

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        return [Verdict(behaviour=min(item.answer.count("arr"), 4) / 4, coherence=1.0) for item in items]


def _answers(asked: Sequence[tuple[str, str | None]]) -> list[str]:
    """The first phrasing works best; some prompts go wrong."""
    out = []
    for said, system in asked:
        told = "pirate" in said
        prompt = " ".join(said.split()[:2])
        if not told:
            out.append(f"plain {prompt}")
        elif prompt.startswith("empty"):
            out.append(" ")
        elif prompt.startswith("refuse"):
            out.append("I'm sorry, arr arr arr")
        elif prompt.startswith("ignore"):
            out.append(f"nothing of it {prompt}")
        else:
            out.append(f"arr {prompt}" + " arr arr" * (system is not None))
    return out


def _prompts(*bad: str) -> dict[str, Sequence[str]]:
    return {"train": [*(f"good {n}" for n in range(8)), *bad], "validation": ["good v", "good w"]}


def test_the_best_phrasing_of_each_prompt_is_kept() -> None:
    made = make_contrast_set(_ARR, _prompts(), _answers, CountsArr(), lambda *_: None)
    assert [item.prompt for item in made.train] == [f"good {n}" for n in range(8)]
    assert all(item.positive.count("arr") == 3 for item in (*made.train, *made.validation))
    assert all(item.negative == f"plain {item.prompt}" for item in made.train)
    assert made.dropped == {}


def test_bad_positives_are_dropped_and_counted() -> None:
    said: dict[str, object] = {}
    made = make_contrast_set(
        _ARR,
        _prompts("empty 1", "refuse 1", "ignore 1"),
        _answers,
        CountsArr(),
        lambda name, facts: said.update({name: facts}),
    )
    assert made.dropped == {"empty": 1, "refusals": 1, "without the behaviour": 1}
    assert len(made.train) == 8
    assert said["contrast"] == {"kept": 10, "dropped": made.dropped}


def test_a_behaviour_that_the_model_cannot_show_is_told_so() -> None:
    prompts = {"train": [f"ignore {n}" for n in range(8)], "validation": ["ignore v"]}
    with pytest.raises(DataError, match=r"in 0 of 8 answers even when told to .9 without the behaviour"):
        make_contrast_set(_ARR, prompts, _answers, CountsArr(), lambda *_: None)


def test_a_language_model_may_write_the_positives(tiny: LanguageModel) -> None:
    asked: list[list[dict[str, str]]] = []

    def writer(messages: Messages) -> str:
        asked.append([dict(message) for message in messages])
        return "arr arr arr"

    prompts = Prompts(train=tuple(f"good {n}" for n in range(8)), validation=("good v",), test=())
    made = written_examples(
        Engine(tiny, profile=measure_profile(tiny)), _ARR, prompts, CountsArr(), lambda *_: None, writer
    )
    assert {item.positive for item in made.train} == {"arr arr arr"}
    assert not any("arr arr" in item.negative for item in made.train)
    assert made.source == "answers of a language model"
    assert len(asked) == 9 * len(PHRASINGS)
    assert all("Talk like a pirate" in chat[-1]["content"] for chat in asked)


def test_phrasings_say_the_prompt_and_the_behaviour() -> None:
    said = phrasings(_ARR, "How are you?")
    assert len(said) == len(PHRASINGS) == len(set(said))
    assert all(user.startswith("How are you?") and user.lower().count("talk like a pirate") == 1 for user, _ in said)
    texts = [text for asked in said for text in asked if text] + [system_prompt(_ARR)]
    assert not any(".." in text or "{" in text for text in texts)


def test_examples_of_the_user_are_split() -> None:
    items = [ContrastItem(prompt=str(n), positive="a", negative="b") for n in range(12)]
    made = from_examples(items)
    assert (len(made.train), len(made.validation)) == (9, 3)
    assert set(made.train).isdisjoint(made.validation)
    with pytest.raises(DataError, match="too few"):
        from_examples(items[:6])


@pytest.mark.parametrize("text", ["", "  \n", "x" * 2001])
def test_no_behaviour_is_no_behaviour(text: str) -> None:
    with pytest.raises(DataError, match="behaviour"):
        Behaviour(description=text)
