"""Weights by gradient: make the examples likely with few features and a short vector. Needs no language model to help.

    added  = mean_norm * sum_i weight_i * unit(decoder row i)
    loss   = -mean log p(token of the positive answer | prompt, added) + l1 * sum |weight|

Few features are reached step by step: the smallest weights are dropped while the others go on learning, since what is cut off at
once takes most of the effect with it. The sign of a weight is that of its candidate's score, the norm of what is added is held
below a limit, and validation examples choose among the weights of the last steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.auto.facts import Candidate, ContrastItem, Epoch, Tuned
from steersman.auto.retrieve import reading_of
from steersman.auto.task import Task
from steersman.errors import DataError
from steersman.models.upper import Prepared, UpperModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """The default optimiser."""

    features: int = 8
    """At most so many in the end."""
    steps: int = 32
    batch: int = 12
    """Examples a step."""
    learning_rate: float = 0.04
    l1: float = 0.02
    max_norm: float = 0.35
    """Of what is added, in mean residual norms."""
    pruned_at: float = 0.6
    """Share of the steps after which no more features are left than are wanted."""
    validate_every: int = 4
    start: Mapping[int, float] | None = field(default=None)
    """Weights to begin with; by default a little for every candidate, by its score."""

    def __post_init__(self) -> None:
        for name in ("features", "steps", "batch", "validate_every"):
            if getattr(self, name) < 1:
                raise DataError(f"gradient: {name} must be 1 or more, not {getattr(self, name)}")
        if not 0 <= self.pruned_at <= 1:
            raise DataError(f"gradient: pruned_at must lie between 0 and 1, not {self.pruned_at}")
        for name in ("learning_rate", "max_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise DataError(f"gradient: {name} must be above 0, not {getattr(self, name)}")

    def tune(self, task: Task, candidates: Sequence[Candidate]) -> Tuned:
        """Train on the contrast set's examples, dropping the smallest weights on the way.

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
    """One optimisation: the prepared texts, the best weights so far, the history."""

    def __init__(self, settings: Gradient, task: Task, candidates: Sequence[Candidate]) -> None:
        self.settings, self.task, self.candidates = settings, task, candidates
        self.upper = UpperModel(task.model, task.sae.config.layer)
        rows = task.sae.W_dec[[candidate.id for candidate in candidates]].cpu().float()
        mean_norm = task.engine.profile.mean_norms[task.sae.config.layer]
        self.directions: Float[Tensor, "candidates d_model"] = mean_norm * rows / rows.norm(dim=1, keepdim=True)
        self.signs = torch.tensor([math.copysign(1.0, candidate.score) for candidate in candidates])
        items = list(task.contrast.train)
        random.Random(task.seed).shuffle(items)
        groups = [items[i : i + settings.batch] for i in range(0, len(items), settings.batch)]
        self.batches = [self._prepare(group) for group in groups]
        self.validation = self._prepare(task.contrast.validation)
        self.history: list[Epoch] = []
        self.best, self.best_score = torch.zeros(len(candidates)), -math.inf
        self.step = 0

    def beginning(self) -> list[float]:
        """Weights to begin with: above zero, so that each has a gradient worth something."""
        given = self.settings.start or {}
        return [given.get(each.id, 0.0 if given else 0.01 * each.score) for each in self.candidates]

    def train(self, weights: Float[Tensor, " candidates"]) -> None:
        """Adam with a proximal L1 step; a weight that was dropped stays 0."""
        settings = self.settings
        parameter = weights.clone().requires_grad_()
        optimiser = torch.optim.Adam([parameter], lr=settings.learning_rate, betas=(0.8, 0.95))
        dropped = torch.zeros(len(weights), dtype=torch.bool)
        self._validate(weights, counts=int((weights != 0).sum()) <= settings.features)
        for step in range(1, settings.steps + 1):
            loss = self._loss(self.batches[(step - 1) % len(self.batches)], parameter)
            (parameter.grad,) = torch.autograd.grad(loss, parameter)
            optimiser.step()
            self.step = step
            with torch.no_grad():
                self._constrain(parameter, dropped, settings.kept_after(step, len(weights)))
            if step % settings.validate_every == 0 or step == settings.steps:
                few = int((~dropped).sum()) <= settings.features or int((parameter != 0).sum()) <= settings.features
                self._validate(parameter.detach(), counts=few)

    def _constrain(self, weights: Tensor, dropped: Tensor, keep: int) -> None:
        shrunk = (weights * self.signs - self.settings.learning_rate * self.settings.l1).clamp(min=0.0)
        weights.copy_(shrunk * self.signs)
        dropped[weights.abs().argsort(descending=True)[keep:]] = True
        weights[dropped] = 0.0
        norm = float((weights @ self.directions).norm() / self.directions[0].norm())
        if norm > self.settings.max_norm:
            weights.mul_(self.settings.max_norm / norm)

    def _validate(self, weights: Tensor, *, counts: bool) -> None:
        """Score weights on the validation examples; keep the best of those that `counts`, having few enough features."""
        with torch.no_grad():
            score = -float(self._loss(self.validation, weights)) - self.settings.l1 * float(weights.abs().sum())
        shown = {self.candidates[i].id: round(float(weights[i]), 4) for i in weights.nonzero().flatten().tolist()}
        self.history.append(Epoch(step=self.step, score=score, weights=shown))
        self.task.report("step", {"step": self.step, "score": score, "weights": {str(k): v for k, v in shown.items()}})
        if counts and score > self.best_score:
            self.best, self.best_score = weights.clone(), score

    def _prepare(self, items: Sequence[ContrastItem]) -> list[Prepared]:
        return self.upper.prepare([reading_of(self.task.model, item, item.positive) for item in items])

    def _loss(self, batches: Sequence[Prepared], weights: Tensor) -> Tensor:
        added = (weights @ self.directions).to(self.task.model.device)
        parts = [self.upper.logprobs(batch, added) for batch in batches]
        return -torch.cat(parts).mean()
