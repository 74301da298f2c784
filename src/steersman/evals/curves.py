"""Curves over multipliers: what a probe measures at every strength of a recipe, item by item, with intervals.

A multiplier is a factor on the recipe's strengths: negative ones turn it round, and 0 is the plain model, without any recipe.
Knows nothing of files, charts or what the probes ask.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from steersman.engine.engine import Engine
from steersman.errors import RequestError
from steersman.evals.items import Scored
from steersman.facts import fact
from steersman.intervals import Interval, bootstrap, paired_difference
from steersman.steering.recipe import Recipe

Kind = Literal["capability", "behaviour", "persona", "safety"]
Score = Callable[[Engine, Recipe | None, float], list[Scored]]
"""One score an item, in order, under a recipe at a strength; None is the plain model."""
Progress = Callable[[str, int, int, str], None]
"""What is measured, how many points of it are done, of how many, and a note."""

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Probe:
    """Something to measure at every multiplier."""

    name: str
    kind: Kind
    measures: str
    """What a value says, in words: `accuracy`, `probability of the matching answer`."""
    score: Score
    items_sha256: str
    """Of all that the scores depend on beside model and recipe."""
    duplicates: int = 0
    """Items that were dropped because they were there before."""
    weights: tuple[float, ...] | None = None
    """How much each item counts; None for alike."""


@fact
class CurvePoint:
    """A probe at one multiplier."""

    multiplier: float
    value: Interval
    """Mean over the scored items with its bootstrap interval, `n` of `total`."""
    items: tuple[float | None, ...]
    """What each item scored, in order."""
    missing: dict[str, int]
    """How many items have no score, by reason."""
    answers: tuple[str | None, ...] | None = None
    """What the model wrote, where that was asked to be kept."""


@fact
class Trend:
    """How a curve goes from the lowest multiplier to the highest."""

    rises: bool | None
    """Whether the mean is higher at every multiplier than at the one before; None where a mean is missing."""
    falls: bool | None
    steps_up: int
    """At how many multipliers the mean is higher than at the one before."""
    steps: int
    change: Interval
    """Highest minus lowest multiplier, item by item."""


@fact
class Curve:
    """A probe at all multipliers, lowest first."""

    name: str
    kind: Kind
    measures: str
    duplicates: int
    weighted: bool
    points: tuple[CurvePoint, ...]

    @property
    def trend(self) -> Trend:
        """How it goes; the change is not weighted."""
        means = [point.value.mean for point in self.points]
        there = [mean for mean in means if mean is not None]
        whole = len(there) == len(means) and len(means) > 1
        up = [after > before for before, after in itertools.pairwise(there)] if whole else []
        down = [after < before for before, after in itertools.pairwise(there)] if whole else []
        return Trend(
            rises=all(up) if whole else None,
            falls=all(down) if whole else None,
            steps_up=sum(up),
            steps=len(self.points) - 1,
            change=paired_difference(self.points[-1].items, self.points[0].items),
        )


class Points(Protocol):
    """Keeps measured points, so that a run that was broken off goes on where it stood."""

    def get(self, probe: Probe, multiplier: float) -> CurvePoint | None:
        """The point, where it was measured before."""

    def put(self, probe: Probe, point: CurvePoint) -> None:
        """Keep a point."""


def parse_multipliers(text: str) -> tuple[float, ...]:
    """Numbers of a list such as `-2,-1,0,1,2`, sorted, each once.

    Raises:
        RequestError: no numbers, or infinite ones.
    """
    try:
        found = {float(part) for part in text.split(",")}
    except ValueError as error:
        raise RequestError(f"multipliers must be numbers between commas, such as -2,-1,0,1,2, not {text!r}") from error
    if not all(map(math.isfinite, found)):
        raise RequestError(f"multipliers must be finite numbers, not {text!r}")
    return tuple(sorted(number + 0.0 for number in found))  # -0.0 becomes 0.0.


def measure_curves(
    engine: Engine,
    recipe: Recipe,
    probes: Sequence[Probe],
    multipliers: Sequence[float],
    *,
    points: Points | None = None,
    report: Progress | None = None,
) -> list[Curve]:
    """Every probe at every multiplier.

    Args:
        engine: what reads and answers.
        recipe: what steers, its strengths times the multiplier.
        probes: what is measured.
        multipliers: any finite numbers; they are sorted, and each is measured once.
        points: where measured points are kept, and found again.
        report: called after every point.

    Raises:
        RequestError: no multiplier.
        RecipeMismatch, SaeError: the recipe does not fit; before anything is measured.
    """
    if not multipliers:
        raise RequestError("there are no multipliers; give at least one")
    recipe.check_fits(engine.model)
    wanted = sorted(set(multipliers))
    curves = []
    for probe in probes:
        found = []
        for number, multiplier in enumerate(wanted, 1):
            point = points.get(probe, multiplier) if points else None
            if point is None:
                point = measure_point(engine, recipe, probe, multiplier)
                if points:
                    points.put(probe, point)
            found.append(point)
            if report:
                report(probe.name, number, len(wanted), f"at {multiplier:g}")
        curves.append(
            Curve(
                name=probe.name,
                kind=probe.kind,
                measures=probe.measures,
                duplicates=probe.duplicates,
                weighted=probe.weights is not None,
                points=tuple(found),
            )
        )
    return curves


def measure_point(engine: Engine, recipe: Recipe, probe: Probe, multiplier: float) -> CurvePoint:
    """One probe at one multiplier; at 0 the recipe is left out, so that this is the plain model bit for bit."""
    scored = probe.score(engine, recipe if multiplier else None, multiplier if multiplier else 1.0)
    values = [one.value for one in scored]
    reasons = Counter(one.missing for one in scored if one.missing is not None)
    answers = tuple(one.answer for one in scored)
    return CurvePoint(
        multiplier=multiplier,
        value=bootstrap(values) if probe.weights is None else weighted_bootstrap(values, probe.weights),
        items=tuple(values),
        missing=dict(reasons),
        answers=answers if any(answer is not None for answer in answers) else None,
    )


def weighted_bootstrap(
    values: Sequence[float | None], weights: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Weighted mean of the values that are there; the bootstrap draws values together with their weights."""
    there = [(value, w) for value, w in zip(values, weights, strict=True) if value is not None and w > 0]
    if not there:
        return Interval(mean=None, low=None, high=None, n=0, total=len(values))
    n, made = len(there), random.Random(seed)
    if n == 1:
        return Interval(mean=there[0][0], low=None, high=None, n=1, total=len(values))
    means = sorted(_weighted(made.choices(there, k=n)) for _ in range(_RESAMPLES))
    low, high = (means[round(share * (_RESAMPLES - 1))] for share in ((1 - level) / 2, (1 + level) / 2))
    return Interval(mean=_weighted(there), low=low, high=high, n=n, total=len(values))


def _weighted(pairs: Sequence[tuple[float, float]]) -> float:
    return math.fsum(value * w for value, w in pairs) / math.fsum(w for _, w in pairs)
