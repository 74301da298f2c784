"""One optimiser after the other: the second begins with the weights that the first ended with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from steersman.auto.facts import Candidate, Tuned
from steersman.auto.task import Optimiser, Task
from steersman.errors import DataError


@dataclass(frozen=True, slots=True)
class Chain:
    """Such as `Chain(Gradient(), TextGrad(ask=endpoint))`."""

    first: Optimiser
    second: Any
    """An optimiser with a field `start`."""

    def __post_init__(self) -> None:
        if "start" not in {each.name for each in fields(self.second)}:
            raise DataError(f"{type(self.second).__name__} cannot go on from another optimiser's weights; put it first")

    def tune(self, task: Task, candidates: Sequence[Candidate]) -> Tuned:
        """Both, one after the other; the history of the second goes on where that of the first ends.

        What the first ends with goes to `task.report` as `best`, in case the second ends early with nothing better.
        """
        begun = self.first.tune(task, candidates)
        weights: dict[str, Any] = {str(feature): weight for feature, weight in begun.weights.items()}
        task.report("best", {"method": begun.method, "weights": weights, "strength": begun.strength})
        ended: Tuned = replace(self.second, start=begun.weights).tune(task, candidates)
        last = begun.history[-1].step if begun.history else -1
        later = tuple(replace(epoch, step=last + 1 + number) for number, epoch in enumerate(ended.history))
        return replace(ended, history=begun.history + later, method=f"{begun.method}+{ended.method}")
