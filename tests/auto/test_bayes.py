"""Bayesian search: seeded, warm, within its bounds, and it finds what is there to be found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import pytest
from tests.auto.rig import PROMPTS, planted_task
from tests.auto.scripted import candidates, graded

from steersman.auto.optimise import bayes
from steersman.auto.optimise.attempts import Attempt
from steersman.auto.optimise.bayes import Bayes
from steersman.auto.strength import trained_norm
from steersman.auto.task import Task
from steersman.errors import DataError
from steersman.judges.facts import Verdict
from steersman.models.language_model import LanguageModel

CANDIDATES = candidates(0.9, -0.8, 0.1, 0.7)


@pytest.fixture(scope="module")
def task(tiny: LanguageModel) -> Task:
    return planted_task(tiny)


@dataclass
class Hill:
    """In place of answers and judge: the score falls with the distance from a peak."""

    peak: dict[int, float]

    def __call__(self, task: Task, weights: dict[int, float], prompts: Sequence[str]) -> Attempt:
        far = sum((weights.get(n, 0.0) - self.peak.get(n, 0.0)) ** 2 for n in {*weights, *self.peak})
        score = 1 / (1 + 8 * far)
        verdict = Verdict(behaviour=score, coherence=1.0)
        return Attempt(dict(weights), trained_norm(task, weights), ("",), (verdict,), score)


def test_it_climbs_a_hill(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bayes, "attempt", Hill({0: -0.4, 1: 0.3}))
    tuned = Bayes(trials=60, features=2).tune(task, CANDIDATES)
    scores = [epoch.score for epoch in tuned.history]
    assert len(scores) == 60
    assert max(scores) > 0.9
    assert max(scores[30:]) > max(scores[:10])
    assert tuned.weights[0] < 0 < tuned.weights[1]  # Against the signs it began with.


def test_the_first_trials_are_what_the_candidates_say(task: Task) -> None:
    judged, judge, reports = graded(task, 0.1, 0.3, 0.2)
    tuned = Bayes(trials=4, features=2, max_strength=0.6).tune(judged, CANDIDATES)
    strengths = [facts["strength"] for facts in reports.of("step")]
    assert strengths[:3] == pytest.approx([0.18, 0.252, 0.36])
    for epoch in tuned.history[:3]:
        assert epoch.weights[1] / epoch.weights[0] == pytest.approx(-0.8 / 0.9)
    assert trained_norm(task, tuned.weights) == pytest.approx(0.252)
    assert (tuned.strength, tuned.method) == (pytest.approx(0.252), "bayes")
    assert [item.prompt for item in judge.asked[0]] == list(PROMPTS[6:])
    assert "best so far 0.300" in tuned.history[3].note


def test_trials_stay_within_their_bounds(task: Task) -> None:
    judged, _, reports = graded(task, 0.2)
    Bayes(trials=8, features=3, max_strength=0.5, prompts=1).tune(judged, CANDIDATES)
    assert all(0.025 * 0.999 <= float(str(facts["strength"])) <= 0.5 * 1.001 for facts in reports.of("step"))


def test_the_same_seed_gives_the_same_trials_another_one_others(task: Task) -> None:
    def history(seed: int) -> Any:
        judged, _, _ = graded(replace(task, seed=seed), 0.1, 0.2, 0.15)
        return Bayes(trials=6, features=2, prompts=1).tune(judged, CANDIDATES).history

    assert history(1) == history(1)
    assert history(1)[:3] == history(2)[:3]
    assert history(1)[3:] != history(2)[3:]


def test_a_start_comes_first_and_at_twice_its_length(task: Task) -> None:
    judged, _, reports = graded(task, 0.2)
    start = {2: 0.1, 3: -0.05}
    tuned = Bayes(trials=2, features=1).tune(judged, CANDIDATES)
    assert set(tuned.weights) == {0}
    judged, _, reports = graded(task, 0.2)
    tuned = Bayes(trials=2, features=2, start=start).tune(judged, CANDIDATES)
    assert tuned.history[0].weights == pytest.approx(start)
    assert tuned.history[1].weights == pytest.approx({2: 0.2, 3: -0.1})
    assert len(reports.of("step")) == 2


def test_candidates_without_scores_are_no_hindrance(task: Task) -> None:
    judged, _, _ = graded(task, 0.2)
    assert len(Bayes(trials=2, prompts=1).tune(judged, candidates(0.0, 0.0)).history) == 2


def test_optuna_keeps_quiet_and_its_verbosity_as_it_was(task: Task, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    judged, _, _ = graded(task, 0.2)
    Bayes(trials=3, prompts=1).tune(judged, CANDIDATES)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before


def test_an_interrupted_search_lets_the_best_go_up_first(task: Task) -> None:
    def grade(n: int) -> float:
        if n == 4:
            raise KeyboardInterrupt
        return (0.1, 0.5, 0.3)[n - 1]

    judged, judge, reports = graded(task, 0.1)
    judge.grade = grade
    with pytest.raises(KeyboardInterrupt):
        Bayes(prompts=1).tune(judged, CANDIDATES)
    event, facts = reports.told[-1]
    assert (event, facts["step"], facts["score"]) == ("best", 1, 0.5)


def test_a_silent_judge_is_told_with_its_trial_never_taken_for_0(task: Task) -> None:
    judged, _, reports = graded(task, 0.3, None)
    with pytest.raises(DataError, match=r"bayes, trial 1: the judge \(script\).*best so far is kept"):
        Bayes(prompts=1).tune(judged, CANDIDATES)
    assert len(reports.of("best")) == 1
    with pytest.raises(DataError, match="no candidate"):
        Bayes().tune(task, [])


@pytest.mark.parametrize("settings", [{"trials": 0}, {"features": 0}, {"prompts": 0}, {"max_strength": -1.0}])
def test_impossible_bayes_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(settings))):
        Bayes(**settings)
