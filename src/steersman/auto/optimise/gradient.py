"""Weights by gradient: bring the model near to what it should predict, with few features. Needs no language model to help.

    added  = mean_norm * sum_i weight_i * unit(decoder row i)
    loss   = mean divergence of the lessons with `added` in the residual stream

Few features are reached step by step: the smallest weights are dropped while the others go on learning, since what is cut off at
once takes most of the effect with it. The sign of a weight is that of its candidate's score, the norm of what is added is held
below a limit, and validation texts choose among the weights of the last steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.auto.facts import Candidate, Epoch, Tuned
from steersman.auto.lessons import Lesson, mean_loss
from steersman.auto.task import Task
from steersman.errors import DataError

_MOMENTUM = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """The default optimiser."""

    features: int = 8
    """At most so many in the end."""
    steps: int = 20
    """Each on one lesson."""
    learning_rate: float = 0.05
    """Length of the first step, in mean residual norms for a single feature; it falls to 0."""
    max_norm: float = 0.5
    """Of what is added, in mean residual norms."""
    pruned_at: float = 0.7
    """Share of the steps after which no more features are left than are wanted."""
    validate_every: int = 4
    start: Mapping[int, float] | None = field(default=None)
    """Weights to begin with; by default none."""

    def __post_init__(self) -> None:
        for name in ("features", "steps", "validate_every"):
            if getattr(self, name) < 1:
                raise DataError(f"gradient: {name} must be 1 or more, not {getattr(self, name)}")
        if not 0 <= self.pruned_at <= 1:
            raise DataError(f"gradient: pruned_at must lie between 0 and 1, not {self.pruned_at}")
        for name in ("learning_rate", "max_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise DataError(f"gradient: {name} must be above 0, not {getattr(self, name)}")

    def tune(self, task: Task, candidates: Sequence[Candidate]) -> Tuned:
        """Train on the task's lessons, dropping the smallest weights on the way.

        Raises:
            DataError: no candidates.
        """
        if not candidates:
            raise DataError("there are no candidate features to weigh; widen the retrieval")
        run = _Run(self, task, candidates)
        run.train(torch.tensor(run.beginning()))
        weights = {candidates[i].id: float(run.best[i]) for i in run.best.nonzero().flatten().tolist()}
        if not weights:
            weights = {candidates[0].id: math.copysign(1.0, candidates[0].score)}
        return Tuned(weights=weights, history=tuple(run.history), method="gradient")

    def kept_after(self, step: int, n: int) -> int:
        """How many of `n` candidates still have a weight after a step: falling by the same factor each time."""
        if n <= self.features:
            return n
        share = min(1.0, step / max(self.pruned_at * self.steps, 1e-9))
        return max(self.features, round(n * math.pow(self.features / n, share)))


class _Run:
    """One optimisation: the best weights so far, the history."""

    def __init__(self, settings: Gradient, task: Task, candidates: Sequence[Candidate]) -> None:
        self.settings, self.task, self.candidates = settings, task, candidates
        rows = task.sae.W_dec[[candidate.id for candidate in candidates]].cpu().float()
        mean_norm = task.engine.profile.mean_norms[task.sae.config.layer]
        self.directions: Float[Tensor, "candidates d_model"] = mean_norm * rows / rows.norm(dim=1, keepdim=True)
        self.signs = torch.tensor([math.copysign(1.0, candidate.score) for candidate in candidates])
        self.history: list[Epoch] = []
        self.best, self.best_score = torch.zeros(len(candidates)), -math.inf
        self.step = 0

    def beginning(self) -> list[float]:
        """Weights to begin with."""
        return [(self.settings.start or {}).get(each.id, 0.0) for each in self.candidates]

    def train(self, weights: Float[Tensor, " candidates"]) -> None:
        """Steps of falling length along the averaged gradient, so that weights grow by what they are worth (Adam's would all grow
        alike, and what is dropped first would be left to chance). A weight that was dropped stays 0."""
        settings = self.settings
        weights, pull = weights.clone().requires_grad_(), torch.zeros(len(weights))
        dropped = torch.zeros(len(weights), dtype=torch.bool)
        self._validate(weights.detach())
        lessons = itertools.cycle(self.task.lessons.train)
        for step in range(1, settings.steps + 1):
            (slope,) = torch.autograd.grad(self._loss([next(lessons)], weights), weights)
            self.step = step
            with torch.no_grad():
                pull = _MOMENTUM * pull - (1 - _MOMENTUM) * slope
                pull[dropped] = 0.0
                length = settings.learning_rate * (1 - (step - 1) / settings.steps)
                weights += length * pull / pull.norm().clamp(min=1e-12)
                self._constrain(weights, dropped, settings.kept_after(step, len(weights)))
            if step % settings.validate_every == 0 or step == settings.steps:
                self._validate(weights.detach())

    def _constrain(self, weights: Tensor, dropped: Tensor, keep: int) -> None:
        weights.copy_((weights * self.signs).clamp(min=0.0) * self.signs)
        dropped[weights.abs().argsort(descending=True)[keep:]] = True
        weights[dropped] = 0.0
        norm = float((weights @ self.directions).norm() / self.directions[0].norm())
        if norm > self.settings.max_norm:
            weights.mul_(self.settings.max_norm / norm)

    def _validate(self, weights: Tensor) -> None:
        """Score weights on the validation texts; keep the best of those that have few enough features, and any at all."""
        with torch.no_grad():
            score = -float(self._loss(self.task.lessons.validation, weights))
        shown = {self.candidates[i].id: round(float(weights[i]), 4) for i in weights.nonzero().flatten().tolist()}
        self.history.append(Epoch(step=self.step, score=score, weights=shown))
        self.task.report("step", {"step": self.step, "score": score, "weights": {str(k): v for k, v in shown.items()}})
        if 1 <= len(shown) <= self.settings.features and score > self.best_score:
            self.best, self.best_score = weights.clone(), score

    def _loss(self, lessons: Sequence[Lesson], weights: Tensor) -> Tensor:
        added = (weights @ self.directions).to(self.task.model.device)
        return mean_loss(self.task.lessons.upper, lessons, added)
