"""Attribution and the gradient optimiser find the feature that wrote the examples, within the limits that they are given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.auto.rig import LENGTH, N_FEATURES, PLANTED, PROMPTS, planted_task

from steersman.auto.facts import Candidate
from steersman.auto.optimise.gradient import Gradient
from steersman.auto.retrieve import attribution, marks
from steersman.auto.strength import choose_strength, trained_norm
from steersman.auto.task import Task
from steersman.errors import DataError
from steersman.models.language_model import LanguageModel
from steersman.sae.index.facts import Label


@pytest.fixture(scope="module")
def task(tiny: LanguageModel) -> Task:
    return planted_task(tiny)


def _candidates(task: Task, n: int = 12) -> list[Candidate]:
    scores = attribution(task)
    best = scores.abs().topk(n).indices.tolist()
    return [Candidate(id=i, label=None, sources=("gradient",), score=float(scores[i])) for i in best]


def test_attribution_ranks_the_planted_feature_first(task: Task) -> None:
    scores = attribution(task)
    assert len(scores) == N_FEATURES
    assert int(scores.argmax()) == PLANTED


def test_attribution_is_the_slope_of_the_likelihood(task: Task) -> None:
    scores = attribution(task)
    assert torch.isfinite(scores).all()
    assert (scores < 0).any()  # Some features make the positive answers less likely.


def test_the_planted_feature_gets_the_largest_weight(task: Task) -> None:
    tuned = Gradient(features=3, steps=16, max_norm=LENGTH).tune(task, _candidates(task))
    assert max(tuned.weights, key=lambda feature: abs(tuned.weights[feature])) == PLANTED
    assert tuned.weights[PLANTED] > 0
    assert 1 <= len(tuned.weights) <= 3
    assert tuned.history[-1].score > tuned.history[0].score


def test_the_norm_is_held(task: Task) -> None:
    tuned = Gradient(steps=12, max_norm=0.2, learning_rate=0.2).tune(task, _candidates(task))
    assert trained_norm(task, tuned.weights) <= 0.2 * 1.001


def test_features_are_dropped_step_by_step(task: Task) -> None:
    settings = Gradient(features=2, steps=10, validate_every=1)
    kept = [settings.kept_after(step, 12) for step in range(11)]
    assert kept[0] == 12
    assert kept == sorted(kept, reverse=True)
    assert kept[7:] == [2] * 4
    tuned = settings.tune(task, _candidates(task))
    assert all(len(epoch.weights) <= settings.kept_after(epoch.step, 12) for epoch in tuned.history)
    assert len(tuned.weights) <= 2


def test_signs_follow_the_candidates(task: Task) -> None:
    candidates = _candidates(task)
    wanted = {each.id: each.score for each in candidates}
    tuned = Gradient(features=12, steps=8).tune(task, candidates)
    assert all(weight * wanted[feature] > 0 for feature, weight in tuned.weights.items())


def test_the_same_seed_gives_the_same_weights(task: Task) -> None:
    settings = Gradient(features=4, steps=6)
    assert settings.tune(task, _candidates(task)) == settings.tune(task, _candidates(task))


def test_training_can_begin_from_given_weights(task: Task) -> None:
    start = {PLANTED: 0.3}
    tuned = Gradient(features=4, steps=2, start=start).tune(task, _candidates(task))
    assert set(tuned.history[0].weights) == {PLANTED}


def test_strength_is_chosen_by_what_is_written(task: Task) -> None:
    recipe = task.recipe({PLANTED: 1.0}, 1.0)
    best, scores = choose_strength(task, recipe, PROMPTS[6:], LENGTH)
    assert scores[0.0] < scores[round(LENGTH, 4)]
    assert best == max(scores, key=lambda length: scores[length])
    assert abs(best - LENGTH) <= LENGTH * 0.5


@pytest.mark.parametrize(
    "fields", [{"features": 0}, {"steps": 0}, {"learning_rate": float("nan")}, {"max_norm": 0.0}, {"pruned_at": 2.0}]
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(fields))):
        Gradient(**fields)  # type: ignore[arg-type]


def test_no_candidates_is_an_error(task: Task) -> None:
    with pytest.raises(DataError, match="no candidate features"):
        Gradient().tune(task, [])


@pytest.mark.parametrize(
    ("label", "density", "said"),
    [
        ('"thou"', 0.01, ()),
        ("line breaks; text in lists", 0.01, ("formatting only",)),
        ('line breaks; "thou"', 0.01, ()),
        ('"the"', 0.3, ("fires everywhere",)),
        ('"the"', 0.0, ("never fires",)),
    ],
)
def test_doubtful_features_are_marked(task: Task, label: str, density: float, said: tuple[str, ...]) -> None:
    labels = (Label(text=label), *task.index.labels[1:])
    densities = task.index.density.clone()
    densities[0] = density
    assert marks(replace(task.index, labels=labels, density=densities), 0) == said
