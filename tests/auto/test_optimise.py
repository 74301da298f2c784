"""Optimisers by name, and two in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import pytest
from tests.auto.rig import planted_task
from tests.auto.scripted import Script, candidates, graded

from steersman.auto.facts import Candidate, Epoch, Tuned
from steersman.auto.optimise import OPTIMISERS, make_optimiser, parts_of, settings_of
from steersman.auto.optimise.bayes import Bayes
from steersman.auto.optimise.chain import Chain
from steersman.auto.optimise.textgrad import TextGrad
from steersman.auto.task import Task
from steersman.errors import DataError, EndpointError
from steersman.models.language_model import LanguageModel

CANDIDATES = candidates(0.9, -0.8, 0.1, 0.7)
WEIGHTS = {2: 0.1, 3: -0.05}


@dataclass(frozen=True)
class Fixed:
    """Ends with weights that are known."""

    def tune(self, task: Task, candidates: Sequence[Candidate]) -> Tuned:
        history = (Epoch(step=0, score=-2.0, weights={}), Epoch(step=4, score=-1.0, weights=WEIGHTS))
        return Tuned(weights=WEIGHTS, history=history, method="fixed")


@pytest.fixture(scope="module")
def task(tiny: LanguageModel) -> Task:
    return planted_task(tiny)


def test_every_optimiser_is_a_frozen_dataclass_with_defaults() -> None:
    for name, cls in OPTIMISERS.items():
        assert is_dataclass(cls)
        assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert make_optimiser(name, ask=Script()).tune
        assert not {"ask", "start"} & set(settings_of(name))


def test_settings_reach_the_optimiser() -> None:
    ask = Script()
    assert make_optimiser("bayes", {"trials": 7, "max_strength": 1}) == Bayes(trials=7, max_strength=1)
    assert make_optimiser("textgrad", {"epochs": 3, "critique": False}, ask) == TextGrad(
        ask=ask, epochs=3, critique=False
    )
    made = make_optimiser("bayes+textgrad", {"textgrad": {"epochs": 2}}, ask)
    assert made == Chain(Bayes(), TextGrad(ask=ask, epochs=2))


@pytest.mark.parametrize(
    ("method", "settings", "told"),
    [
        ("textgrads", {}, "did you mean 'textgrad'"),
        ("bayes", {"trails": 3}, "did you mean 'trials'"),
        ("bayes", {"start": {}}, "no setting 'start'"),
        ("textgrad", {"ask": 1}, "no setting 'ask'"),
        ("bayes", {"trials": "many"}, "trials must be int, not 'many'"),
        ("bayes", {"trials": 2.5}, "trials must be int"),
        ("bayes", {"trials": True}, "trials must be int"),
        ("bayes", {"prompts": "all"}, "prompts must be int"),
        ("textgrad", {"critique": 1}, "critique must be bool"),
        ("textgrad", {"max_strength": "strong"}, "max_strength must be float or int"),
        ("bayes", {"trials": 0}, "trials must be 1 or more"),
        ("bayes+textgrad", {"trials": 3}, "under the names of its parts"),
        ("bayes+textgrad", {"bayes": 3}, "must be a table"),
        ("bayes+bayes", {}, "two different ones"),
        ("gradient+bayes+textgrad", {}, "two different ones"),
        ("", {}, "unknown optimiser ''"),
    ],
)
def test_what_cannot_be_made_is_refused(method: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        make_optimiser(method, settings, Script())


def test_without_an_endpoint_textgrad_says_what_to_set() -> None:
    for method in ("textgrad", "bayes+textgrad"):
        with pytest.raises(EndpointError, match="STEERSMAN_LLM_URL"):
            make_optimiser(method)


def test_parts() -> None:
    assert parts_of("bayes") == ("bayes",)
    assert parts_of("bayes + textgrad") == ("bayes", "textgrad")


def test_the_second_goes_on_from_the_first(task: Task) -> None:
    judged, _, reports = graded(task, 0.3, 0.6, 0.2)
    ask = Script('{"weights": [0.5, 0]}', '{"weights": [0, 0.5]}')
    second = TextGrad(ask=ask, epochs=2, features=2, reasoning=False)
    tuned = Chain(Fixed(), second).tune(judged, CANDIDATES)
    assert tuned.method == "fixed+textgrad"
    assert [epoch.step for epoch in tuned.history] == [0, 4, 5, 6, 7]
    assert tuned.history[2].weights == pytest.approx(WEIGHTS)
    assert tuned.weights == tuned.history[3].weights
    assert set(tuned.weights) == {2}
    (best,) = reports.of("best")
    assert best["weights"] == {"2": 0.1, "3": -0.05}


def test_when_the_second_fails_the_best_of_both_has_gone_up(task: Task) -> None:
    judged, _, reports = graded(task, 0.3)
    down = TextGrad(ask=Script(EndpointError("it is down")), features=2)
    with pytest.raises(EndpointError, match="textgrad, epoch 1: it is down"):
        Chain(Fixed(), down).tune(judged, CANDIDATES)
    first, second = reports.of("best")
    assert first["method"] == "fixed"
    assert (second["method"], second["score"]) == ("textgrad", 0.3)


def test_who_cannot_go_on_from_weights_is_not_second() -> None:
    with pytest.raises(DataError, match="Fixed cannot go on"):
        Chain(Bayes(), Fixed())
