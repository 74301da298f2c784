"""The scorer's loop: what it sees, when it ends, what its weights come to, and what stays when it breaks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.auto.rig import PROMPTS, planted_task
from tests.auto.scripted import Script, candidates, graded
from tests.models.chat_server import completion, serving

from steersman.auto.optimise.textgrad import SCORERS, TextGrad
from steersman.auto.task import Task
from steersman.errors import DataError, EndpointError
from steersman.models.endpoint import ChatSettings, Endpoint
from steersman.models.language_model import LanguageModel
from steersman.steering.features import add_features
from steersman.steering.recipe import Recipe

CANDIDATES = candidates(0.9, -0.8, 0.1, 0.7)


@pytest.fixture(scope="module")
def task(tiny: LanguageModel) -> Task:
    return planted_task(tiny)


def says(*weights: float, reasoning: str | None = "because") -> str:
    return json.dumps(({} if reasoning is None else {"reasoning": reasoning}) | {"weights": list(weights)})


def _tuned(ask: Script, task: Task, **settings: Any) -> Any:
    return TextGrad(ask=ask, features=3, **settings).tune(task, CANDIDATES)


def test_it_ends_when_a_score_passes_the_bar(task: Task) -> None:
    judged, _, reports = graded(task, 0.2, 0.7, 0.75, 1.0)
    ask = Script(says(0.1, 0, 0), says(0.2, 0, 0), says(0.3, -0.5, 0), says(1, 1, 1))
    tuned = _tuned(ask, judged)
    assert [(epoch.step, epoch.score) for epoch in tuned.history] == [(1, 0.2), (2, 0.7), (3, 0.75)]
    assert tuned.method == "textgrad"
    assert list(tuned.weights) == [0, 1]  # Best first, and no zeros.
    assert [facts["score"] for facts in reports.of("step")] == [0.2, 0.7, 0.75]
    assert not reports.of("best")
    assert tuned.history[-1].note == "critique 3"


def test_it_ends_after_the_last_epoch_with_the_best_of_all(task: Task) -> None:
    judged, _, _ = graded(task, 0.2, 0.5, 0.1)
    tuned = _tuned(Script(*[says(n / 10, 0, 0) for n in range(1, 10)]), judged, epochs=3)
    assert len(tuned.history) == 3
    assert tuned.weights == tuned.history[1].weights


def test_weights_are_lengths_along_their_features(task: Task) -> None:
    judged, judge, _ = graded(task, 0.1)
    tuned = _tuned(Script(says(0.5, 0, -1)), judged, epochs=1, max_strength=0.6)
    # Features in the order of their scores: 0, 1, 3.
    assert tuned.weights == pytest.approx({0: 0.5 * 0.6 / math.sqrt(3), 3: -0.6 / math.sqrt(3)})
    rows = task.sae.W_dec[[0, 3]]
    added = torch.tensor(list(tuned.weights.values())) @ (rows / rows.norm(dim=1, keepdim=True))
    assert tuned.strength == pytest.approx(float(added.norm()))
    edit = add_features(task.sae, tuned.weights, strength=tuned.strength)
    prompt = task.contrast.validation[0].prompt
    assert [item.answer for item in judge.asked[0]] == task.answers([prompt], Recipe(name="by hand", edits=(edit,)))


def test_weights_near_nothing_steer_weakly_and_nothing_not_at_all(task: Task) -> None:
    judged, judge, _ = graded(task, 0.1)
    tuned = _tuned(Script(says(1, 1, 1), says(0.01, 0.01, 0.01), says(0, 0, 0)), judged, epochs=3)
    full, weak, _ = (facts["strength"] for facts in judged.report.of("step"))  # type: ignore[attr-defined]
    assert weak == pytest.approx(full / 100)
    assert judge.asked[2][0].answer == task.answers([judge.asked[2][0].prompt])[0]
    assert tuned.history[2].weights == {}


def test_the_scorer_sees_labels_and_history_with_critiques(task: Task) -> None:
    judged, judge, _ = graded(task, 0.2, 0.3)
    ask = Script(says(0.1, 0, 0), says(0.2, -0.3, 0))
    _tuned(ask, judged, epochs=2)
    assert [message["role"] for message in ask.heard[0]] == ["system", "user"]
    first, second = ask.shown(0), ask.shown(1)
    assert first["behaviour"] == "be planted"
    assert [feature["label"] for feature in first["features"]] == ["word 0", "word 1", "word 3"]
    assert first["prompts"] == [PROMPTS[6]]
    assert first["history"] == []
    (tried,) = second["history"]
    assert (tried["weights"], tried["score"]) == ([0.1, 0.0, 0.0], 2.0)
    (answer,) = tried["answers"]
    assert answer["answer"] == judge.asked[0][0].answer
    assert (answer["behaviour"], answer["coherence"], answer["critique"]) == (2.0, 10.0, "critique 1")


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_differ_in_what_they_see_and_how_they_answer(task: Task, name: str) -> None:
    variant = SCORERS[name]
    judged, _, _ = graded(task, 0.2)
    reply = says(0.1, 0, 0, reasoning="so" if variant["reasoning"] else None)
    ask = Script(reply, reply)
    _tuned(ask, judged, epochs=2, **variant)
    seen = json.dumps(ask.shown(1)["history"])
    assert all((word in seen) == variant["critique"] for word in ("critique 1", "score", "coherence"))
    assert ("judge's `score`" in ask.heard[0][0]["content"]) == variant["critique"]
    assert ('"reasoning"' in ask.heard[0][0]["content"]) == variant["reasoning"]


@pytest.mark.parametrize(
    "reply",
    [
        "I propose 0.5",
        says(0.1, 0.2),
        says(0.1, 0.2, 0.3, 0.4),
        says(0.1, 0.2, 1.5),
        '{"reasoning": "r", "weights": [0.1, 0.2, "0.3"]}',
        '{"reasoning": "r", "weights": [0.1, 0.2, true]}',
        '{"reasoning": "r", "weights": [0.1, 0.2, NaN]}',
        '{"reasoning": "r", "weights": {"0": 1}}',
        '{"weights": [0.1, 0.2, 0.3], "reasoning": "afterwards"}',
        '{"weights": [0.1, 0.2, 0.3]}',
        says(0.1, 0.2, 0.3, reasoning="  "),
    ],
)
def test_a_malformed_reply_is_asked_again_then_told_with_its_epoch(task: Task, reply: str) -> None:
    judged, judge, reports = graded(task, 0.4)
    ask = Script(says(0.5, 0, 0), reply, reply, reply, says(1, 1, 1))
    with pytest.raises(EndpointError, match="textgrad, epoch 2: no usable answer in 3 tries") as caught:
        _tuned(ask, judged)
    assert "the best so far is kept (step 1, score 0.40" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(judge.asked) == 1
    (best,) = reports.of("best")
    assert best["score"] == 0.4
    assert list(best["weights"]) == ["0"]  # type: ignore[arg-type]
    assert _tuned(Script(reply, says(0.5, 0, 0)), judged, epochs=1).history[0].score == 0.4


def test_an_endpoint_that_fails_at_once_has_nothing_to_keep(task: Task) -> None:
    judged, _, reports = graded(task, 0.4)
    with pytest.raises(EndpointError, match="epoch 1: it is down; nothing was tried before"):
        _tuned(Script(EndpointError("it is down")), judged)
    assert not reports.told


def test_a_judge_without_a_verdict_is_told_with_its_epoch(task: Task) -> None:
    judged, _, reports = graded(task, 0.4, None)
    with pytest.raises(DataError, match=r"textgrad, epoch 2: the judge \(script\) scored none.*no words for it"):
        _tuned(Script(says(0.5, 0, 0), says(0.6, 0, 0)), judged)
    assert len(reports.of("best")) == 1


def test_an_interrupt_lets_the_best_so_far_go_up_first(task: Task) -> None:
    def interrupt(messages: Sequence[Any]) -> str:
        if len(json.loads(messages[1]["content"])["history"]) == 2:
            raise KeyboardInterrupt
        return says(0.5, 0, 0)

    judged, _, reports = graded(task, 0.4, 0.3)
    with pytest.raises(KeyboardInterrupt):
        TextGrad(ask=interrupt, features=3).tune(judged, CANDIDATES)
    assert reports.told[-1][0] == "best"
    assert (reports.told[-1][1]["score"], reports.told[-1][1]["step"]) == (0.4, 1)


def test_a_start_is_tried_before_the_scorer_is_asked(task: Task) -> None:
    judged, _, _ = graded(task, 0.4, 0.5)
    ask = Script(says(0.5, 0, 0))
    unit = 0.5 / math.sqrt(3)
    tuned = _tuned(ask, judged, epochs=1, start={2: 0.1, 1: -5.0})
    assert [epoch.step for epoch in tuned.history] == [0, 1]
    assert tuned.history[0].weights == pytest.approx({1: -unit, 2: 0.1})  # Held to -1 of the scale.
    assert [feature["label"] for feature in ask.shown(0)["features"]] == ["word 1", "word 2", "word 0"]
    assert ask.shown(0)["history"][0]["weights"] == [-1.0, round(0.1 / unit, 3), 0.0]


def test_a_start_that_is_good_enough_needs_no_scorer(task: Task) -> None:
    judged, _, _ = graded(task, 0.9)
    assert len(_tuned(Script(), judged, start={0: 0.2}).history) == 1


def test_a_start_of_unknown_features_is_refused(task: Task) -> None:
    with pytest.raises(DataError, match="feature 55, which is not among the candidates"):
        _tuned(Script(), task, start={55: 0.2})


def test_several_prompts_are_answered_and_averaged(task: Task) -> None:
    judged, judge, _ = graded(task, 0.4)
    tuned = _tuned(Script(says(0.5, 0, 0)), judged, epochs=1, prompts=2)
    assert [item.prompt for item in judge.asked[0]] == list(PROMPTS[6:])
    assert tuned.history[0].score == pytest.approx(0.4)


def test_what_cannot_be_tuned_is_refused(task: Task) -> None:
    with pytest.raises(DataError, match="no candidate features"):
        TextGrad(ask=Script()).tune(task, [])
    bare = replace(task, contrast=replace(task.contrast, validation=()))
    with pytest.raises(DataError, match="no validation prompts"):
        TextGrad(ask=Script()).tune(bare, CANDIDATES)


@pytest.mark.parametrize(
    "settings",
    [{"epochs": 0}, {"features": 0}, {"prompts": 0}, {"retries": -1}, {"max_strength": 0.0}, {"stop_above": 7.0}],
)
def test_impossible_textgrad_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(settings))):
        TextGrad(ask=Script(), **settings)


def test_it_runs_over_http(task: Task) -> None:
    judged, _, _ = graded(task, 0.2, 0.8)
    with serving() as server:
        server.answers(completion("hm"), completion(says(0.1, 0, 0)), completion(says(0.2, 0, 0)))
        ask = Endpoint(server.url, "m", settings=ChatSettings(pause_s=0.01))
        tuned = TextGrad(ask=ask, features=3).tune(judged, CANDIDATES)
    assert [epoch.score for epoch in tuned.history] == [0.2, 0.8]
    assert ask.usage.calls == 3
