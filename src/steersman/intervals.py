"""Means with bootstrap intervals, and how many values they rest on. Pure functions on plain numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from steersman.facts import fact

_RESAMPLES = 2000


@fact
class Interval:
    """A mean and the percentile bootstrap interval around it (Efron 1979); a single value has none."""

    mean: float | None
    """None where there is no value at all."""
    low: float | None
    high: float | None
    n: int
    """Values that were scored."""
    total: int
    """Values that were asked for."""


def bootstrap(values: Sequence[float | None], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of the values that are there, with its interval; what is missing is counted, never taken for 0."""
    there = [value for value in values if value is not None]
    if not there:
        return Interval(mean=None, low=None, high=None, n=0, total=len(values))
    n, made = len(there), random.Random(seed)
    if n == 1:  # Drawn again and again it gives itself: an interval of no width would look certain.
        return Interval(mean=there[0], low=None, high=None, n=1, total=len(values))
    means = sorted(math.fsum(made.choices(there, k=n)) / n for _ in range(_RESAMPLES))
    low, high = (means[round(share * (_RESAMPLES - 1))] for share in ((1 - level) / 2, (1 + level) / 2))
    return Interval(mean=math.fsum(there) / n, low=low, high=high, n=n, total=len(values))


def paired_difference(
    one: Sequence[float | None], other: Sequence[float | None], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of `one - other`, value by value, where both are there."""
    pairs = zip(one, other, strict=True)
    return bootstrap([None if a is None or b is None else a - b for a, b in pairs], level=level, seed=seed)
