"""What the optimisers that answer and judge share: one attempt, all attempts so far, which features they weigh.

Weights are lengths here, as everywhere in auto-steering: `sum_i weight_i * unit(decoder row i)`, in mean residual norms, is
what is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import TracebackType
from typing import Self

from steersman.auto.facts import Candidate, Epoch, Tuned
from steersman.auto.strength import trained_norm
from steersman.auto.task import Task
from steersman.errors import DataError, SteersmanError
from steersman.judges.facts import Verdict


@dataclass(frozen=True, slots=True)
class Attempt:
    """What some weights came to."""

    weights: dict[int, float]
    """Those that are not 0."""
    strength: float
    """Length of what they add; 0 where they add nothing."""
    answers: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    score: float
    """Mean product of behaviour and coherence over the answers that could be judged."""


def attempt(task: Task, weights: Mapping[int, float], prompts: Sequence[str]) -> Attempt:
    """Answer the prompts with these weights, and let the task's judge score the answers.

    Raises:
        DataError: not one answer could be judged.
    """
    there = {feature: weight for feature, weight in weights.items() if weight}
    strength = trained_norm(task, there) if there else 0.0
    answers = task.answers(prompts, task.recipe(there, strength) if strength else None)
    verdicts = task.judged(prompts, answers)
    products = [verdict.product for verdict in verdicts if verdict.product is not None]
    if not products:
        raise DataError(f"the judge ({task.judge.name}) scored none of the answers: {verdicts[0].missing}")
    return Attempt(there, strength, tuple(answers), tuple(verdicts), fmean(products))


@dataclass(slots=True)
class Attempts:
    """The attempts so far, as a context: whatever ends it early, the best so far goes to the task's report first."""

    task: Task
    method: str
    made: list[tuple[Epoch, float]] = field(default_factory=list)
    """Each with its strength."""

    def add(self, step: int, found: Attempt, note: str = "") -> None:
        """Remember an attempt, and report it."""
        epoch = Epoch(step=step, score=found.score, weights=found.weights, note=note)
        self.made.append((epoch, found.strength))
        self._report("step", epoch, found.strength)

    @property
    def best(self) -> tuple[Epoch, float]:
        """The highest score, the first of equals, with its strength."""
        return max(self.made, key=lambda each: each[0].score)

    def tuned(self) -> Tuned:
        """The best weights, and how they came about."""
        epoch, strength = self.best
        history = tuple(each for each, _ in self.made)
        return Tuned(weights=epoch.weights, history=history, method=self.method, strength=strength)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt | SteersmanError) and self.made:
            self._report("best", *self.best)

    def kept(self) -> str:
        """What an error says of the best so far."""
        if not self.made:
            return "nothing was tried before"
        epoch, strength = self.best
        return f"the best so far is kept (step {epoch.step}, score {epoch.score:.2f}, strength {strength:.2f})"

    def _report(self, event: str, epoch: Epoch, strength: float) -> None:
        self.task.report(
            event,
            {
                "method": self.method,
                "step": epoch.step,
                "score": epoch.score,
                "weights": {str(feature): weight for feature, weight in epoch.weights.items()},
                "strength": strength,
                "note": epoch.note,
            },
        )


def weighed(candidates: Sequence[Candidate], start: Mapping[int, float] | None, features: int) -> list[Candidate]:
    """The candidates that get a weight: those that the start names, then the best by score, `features` in all or as many as the
    start has.

    Raises:
        DataError: there are none.
    """
    begun = [each for each in candidates if start and each.id in start]
    named = {each.id for each in begun}
    lost = sorted(set(start or {}) - named)
    if lost:
        raise DataError(
            f"the start weighs feature {lost[0]}, which is not among the candidates; leave it out of the start"
        )
    rest = sorted((each for each in candidates if each.id not in named), key=lambda each: -abs(each.score))
    chosen = [*begun, *rest[: max(0, features - len(begun))]]
    if not chosen:
        raise DataError("there are no candidate features to weigh; widen the retrieval")
    return chosen


def prompts_of(task: Task, n: int | None) -> list[str]:
    """The first validation prompts of the contrast set, or all of them.

    Raises:
        DataError: there are none.
    """
    prompts = [item.prompt for item in task.contrast.validation][:n]
    if not prompts:
        raise DataError("the contrast set has no validation prompts; give at least one")
    return prompts
