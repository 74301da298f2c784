"""Weights and strength by Bayesian optimisation (optuna's TPE) against the judge. Needs no language model to help.

Each trial is a direction (weights in [-1, 1], of which only the ratios count) and a length, searched on a logarithmic scale:
twice the best length often leaves nothing of the model's language. Best for few features: what the search costs grows with
their number.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steersman.auto.facts import Candidate, Tuned
from steersman.auto.optimise.attempts import Attempts, attempt, prompts_of, weighed
from steersman.auto.strength import trained_norm
from steersman.auto.task import Task
from steersman.errors import DataError

if TYPE_CHECKING:
    import optuna

_WEAKEST = 0.05  # of max_strength
_WARM_STRENGTHS = (0.3, 0.42, 0.6)  # of max_strength: what gradient's recipes end at, on the shipped SAE


@dataclass(frozen=True, slots=True, kw_only=True)
class Bayes:
    """Search without a gradient: the same seed gives the same trials."""

    trials: int = 30
    features: int = 8
    """How many of the best candidates are weighed; more where the start has more."""
    prompts: int | None = None
    """How many of the validation prompts are answered in each trial; None is all."""
    max_strength: float = 0.5
    """In mean residual norms."""
    start: Mapping[int, float] | None = None
    """Weights to begin with, as lengths in mean residual norms; None begins with the candidates' scores."""

    def __post_init__(self) -> None:
        for name in ("trials", "features", "prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"bayes: {name} must be 1 or more, not {value}")
        if not (math.isfinite(self.max_strength) and self.max_strength > 0):
            raise DataError(f"bayes: max_strength must be above 0, not {self.max_strength}")

    def tune(self, task: Task, candidates: Sequence[Candidate]) -> Tuned:
        """Try, judge, and try where it is likely to be better; the best of all trials.

        Whatever ends it early, the best so far goes to `task.report` as `best` first.

        Raises:
            DataError: no candidates, no validation prompts, or a judge that scores nothing; names the trial.
        """
        chosen = weighed(candidates, self.start, self.features)
        prompts = prompts_of(task, self.prompts)
        with _quiet(), Attempts(task, "bayes") as made:
            study = self._study(task, chosen)
            for number in range(self.trials):
                trial = study.ask()
                direction = {each.id: trial.suggest_float(f"feature {each.id}", -1.0, 1.0) for each in chosen}
                strength = trial.suggest_float("strength", _WEAKEST * self.max_strength, self.max_strength, log=True)
                norm = trained_norm(task, direction)
                lengths = {feature: weight * strength / norm for feature, weight in direction.items()} if norm else {}
                try:
                    found = attempt(task, lengths, prompts)
                except DataError as error:
                    raise DataError(f"bayes, trial {number}: {error}; {made.kept()}") from error
                study.tell(trial, found.score)
                before = max([found.score, *(epoch.score for epoch, _ in made.made)])
                made.add(number, found, f"strength {found.strength:.2f}; best so far {before:.3f}")
            return made.tuned()

    def _study(self, task: Task, chosen: Sequence[Candidate]) -> optuna.Study:
        """In memory, seeded, with what is known already as its first trials."""
        import optuna

        warm = self._known(task, chosen)
        random_trials = max(1, min(10, self.trials // 3) - len(warm))
        sampler = optuna.samplers.TPESampler(seed=task.seed, n_startup_trials=len(warm) + random_trials)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for direction, strength in warm:
            known = {f"feature {feature}": weight for feature, weight in direction.items()}
            study.enqueue_trial({**known, "strength": strength})
        return study

    def _known(self, task: Task, chosen: Sequence[Candidate]) -> list[tuple[dict[int, float], float]]:
        """Directions, the largest weight of each at 1, and lengths that deserve a trial."""
        lowest, highest = _WEAKEST * self.max_strength, self.max_strength
        if self.start is None:
            weights = {each.id: each.score for each in chosen}
            strengths = [share * self.max_strength for share in _WARM_STRENGTHS]
        else:
            weights = {each.id: self.start.get(each.id, 0.0) for each in chosen}
            norm = trained_norm(task, weights)
            strengths = [norm, 2 * norm]  # What is trained by likelihood is best at about twice its length.
        largest = max(map(abs, weights.values()))
        if not largest or not math.isfinite(largest):
            return []
        direction = {feature: weight / largest for feature, weight in weights.items()}
        return [(direction, max(lowest, min(highest, strength))) for strength in dict.fromkeys(strengths)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep optuna from writing to standard error: what happens is reported."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
