"""The losses are the papers' formulas, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from steersman.steering.methods.preferences import PREFERENCES, BiPO, Push, RePS, Sides, null

PLAIN = Sides(
    torch.tensor([-10.0, -4.0]), torch.tensor([-6.0, -8.0]), torch.tensor([5.0, 2.0]), torch.tensor([3.0, 4.0])
)
HIDDEN = torch.tensor([[[3.0, 4.0], [-3.0, 1.0]]])


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def moved(positive: list[float], negative: list[float]) -> Sides:
    return Sides(torch.tensor(positive), torch.tensor(negative), PLAIN.positive_tokens, PLAIN.negative_tokens)


def test_bipo_is_dpo_against_the_plain_model_with_a_sign() -> None:
    seen: list[Tensor] = []

    def predict(push: Push) -> Sides:
        seen.append(push(HIDDEN))
        return moved([-8.0, -5.0], [-7.0, -8.0])

    vector = torch.tensor([1.0, 2.0])
    for sign in BiPO.factors:
        expected = [sign * 0.1 * (2.0 + 1.0), sign * 0.1 * (-1.0 - 0.0)]
        loss = BiPO(beta=0.1)(vector, sign, predict, PLAIN)
        assert float(loss) == pytest.approx(-sum(map(log_sigmoid, expected)) / 2, rel=1e-5)
    assert torch.equal(seen[0], -vector)
    assert torch.equal(seen[1], vector)


def test_reps_adds_for_the_positive_and_takes_out_for_the_negative() -> None:
    pushes: list[Tensor] = []

    def predict(push: Push) -> Sides:
        pushes.append(push(HIDDEN))
        return moved([-5.0, -3.0], [-9.0, -8.0]) if len(pushes) == 1 else moved([-15.0, -6.0], [-3.0, -4.0])

    vector = torch.tensor([0.0, 2.0])
    loss = RePS()(vector, 1.5, predict, PLAIN)
    # The plain model finds the first positive answer unlikelier by 4, the second negative one.
    up = [4.0 * -5.0 / 5 - -9.0 / 3, 1.0 * -3.0 / 2 - -8.0 / 4]
    down = [1.0 * -3.0 / 3 - -15.0 / 5, 4.0 * -4.0 / 4 - -6.0 / 2]
    expected = -sum(log_sigmoid(a) + log_sigmoid(b) for a, b in zip(up, down, strict=True)) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(pushes[0], 1.5 * vector)
    assert torch.equal(HIDDEN + pushes[1], torch.tensor([[[3.0, 0.0], [-3.0, 0.0]]]))


def test_null_leaves_negative_projections_alone() -> None:
    vector = torch.tensor([2.0, 0.0])
    assert torch.equal(null(HIDDEN, vector), torch.tensor([[[-3.0, 0.0], [0.0, 0.0]]]))
    assert torch.equal(null(HIDDEN, 7 * vector), null(HIDDEN, vector))


@pytest.mark.parametrize("name", PREFERENCES)
def test_what_prefers_the_positive_answers_costs_less(name: str) -> None:
    def predict(better: float) -> Sides:
        return moved([-10.0 + better, -4.0 + better], [-6.0 - better, -8.0 - better])

    def loss(better: float) -> float:
        calls = iter((better, -better))  # RePS' second pass has the direction taken out.
        return float(PREFERENCES[name]()(torch.ones(2), 1.0, lambda _: predict(next(calls)), PLAIN))

    assert loss(1.0) < loss(0.0) < loss(-1.0)
