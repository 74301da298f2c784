"""Logistic regression on embeddings by Newton's method. Knows nothing of what is told apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from steersman.errors import DataError

_MAX_STEPS = 100
_CLOSE = 1e-9


@dataclass(frozen=True)
class Logistic:
    """The probability that something is on the one side, from its embedding."""

    weights: Float[Tensor, " width"]
    """float64."""
    bias: float

    def probabilities(self, embeddings: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
        """One for each row, float64."""
        return torch.sigmoid(embeddings.double() @ self.weights + self.bias)


def fit_logistic(
    embeddings: Float[Tensor, "n width"],
    positive: Bool[Tensor, " n"],
    positive_cost: float = 1.0,
    ridge: float = 0.3,
) -> Logistic:
    """The regression that minimises `sum_i c_i * log loss_i + ridge / 2 * |weights|^2`; the bias is free.

    The penalty makes the problem strictly convex, and steps are halved until they help: so it ends at the one minimum.

    Args:
        embeddings: of what to learn from; computed on in float64, on the CPU.
        positive: the side of each.
        positive_cost: `c_i` of the positive ones; 1 for the others.
        ridge: above 0.

    Raises:
        DataError: all on one side.
    """
    if bool(positive.all()) or not bool(positive.any()):
        raise DataError("a classifier learns from two sides, but these are all on one; give some of both")
    x = torch.cat([embeddings.cpu().double(), torch.ones(len(embeddings), 1, dtype=torch.float64)], dim=1)
    y = positive.double()
    costs = torch.where(positive, positive_cost, 1.0).double()
    penalty = torch.full((x.shape[1],), ridge, dtype=torch.float64)
    penalty[-1] = 0.0

    def loss(theta: Tensor) -> float:
        z = x @ theta
        return float((costs * (F.softplus(z) - y * z)).sum() + (penalty * theta * theta).sum() / 2)

    theta = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(_MAX_STEPS):
        p = torch.sigmoid(x @ theta)
        gradient = x.T @ (costs * (p - y)) + penalty * theta
        if float(gradient.abs().max()) < _CLOSE:
            break
        curvature = (x * (costs * p * (1 - p)).clamp(min=1e-12)[:, None]).T @ x + penalty.diag()
        step, size = torch.linalg.solve(curvature, gradient), 1.0
        while loss(theta - size * step) > loss(theta) and size > 1e-6:
            size /= 2
        theta = theta - size * step
    return Logistic(theta[:-1], float(theta[-1]))
