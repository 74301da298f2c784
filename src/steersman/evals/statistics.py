"""Statistics of a comparison: paired tests, many of them at once, strength chosen on other prompts. Pure functions on numbers.

A value that is missing is None; it is left out and counted, never taken for 0.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from steersman.errors import DataError
from steersman.facts import fact
from steersman.intervals import Interval, paired_difference

Values = Sequence[float | None]
K = TypeVar("K")

_EXACT = 16
"""So many pairs are tested exactly, by all 65,536 ways to turn their signs."""
_DRAWS = 20_000
_LEAST_SCORED = 0.5


@fact
class Paired:
    """Two ways of answering, prompt by prompt."""

    difference: Interval
    """Mean of the first less the second, over prompts where both were scored."""
    p: float | None
    """Two-sided, by sign flips; None with fewer than two pairs."""
    p_holm: float | None = None
    """The same, corrected for all methods that are compared with the same one."""


def compare(one: Values, other: Values, seed: int = 0) -> Paired:
    """A paired comparison: mean difference with its bootstrap interval, and the test of `sign_flip`."""
    pairs = [a - b for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return Paired(difference=paired_difference(one, other, seed=seed), p=sign_flip(pairs, seed))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float | None:
    """Two-sided p-value of the mean being 0, were the sign of each difference mere chance (Fisher 1935, section 21).

    Exact up to 16 pairs; beyond that from 20,000 random flips, the observed one counted among them (so it is never 0).

    Returns:
        None with fewer than two differences.
    """
    if len(differences) < 2:
        return None
    values = torch.tensor(differences, dtype=torch.float64)
    observed = abs(math.fsum(differences)) - 1e-12  # Rounding must not push the observed sum out of its own tail.
    if len(differences) <= _EXACT:
        sums = torch.zeros(1, dtype=torch.float64)
        for value in values:
            sums = torch.cat([sums + value, sums - value])
        return float((sums.abs() >= observed).double().mean())
    made = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (_DRAWS, len(values)), generator=made).double() * 2 - 1
    return (int(((signs @ values).abs() >= observed).sum()) + 1) / (_DRAWS + 1)


def sign_test(wins: int, losses: int) -> float | None:
    """Two-sided p-value of wins and losses being equally likely (exact binomial); ties say nothing and are left out.

    Returns:
        None without a win or a loss.
    """
    n = wins + losses
    if n == 0:
        return None
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, tail / 2.0 ** (n - 1))


def holm(found: Mapping[K, float | None]) -> dict[K, float | None]:
    """P-values corrected for their number (Holm 1979); those that are missing stay so and are not counted."""
    there = sorted(((p, key) for key, p in found.items() if p is not None), key=lambda pair: pair[0])
    corrected: dict[K, float | None] = dict.fromkeys(found)
    largest = 0.0
    for rank, (p, key) in enumerate(there):
        largest = max(largest, min(1.0, (len(there) - rank) * p))
        corrected[key] = largest
    return corrected


def harmonic_mean(values: Values) -> float | None:
    """Harmonic mean; 0 where any value is 0 (AxBench, arXiv:2501.17148 section 3), None where any is missing."""
    if any(value is None for value in values) or not values:
        return None
    there = [value for value in values if value is not None]
    return 0.0 if min(there) <= 0 else len(there) / math.fsum(1 / value for value in there)


def halves(n: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers 0 to n - 1 in two halves at random, each in order.

    Raises:
        DataError: fewer than two for a half.
    """
    if n < 4:
        raise DataError(f"{n} prompts are too few: strength is chosen on half of them; give at least 4")
    order = random.Random(seed).sample(range(n), n)
    return tuple(sorted(order[: n // 2])), tuple(sorted(order[n // 2 :]))


@dataclass(frozen=True, slots=True)
class CrossFit:
    """Strength chosen on each half, for the other."""

    strengths: tuple[float | None, float | None]
    """What the first half is reported at (chosen on the second), and what the second is. None: nothing could be scored."""
    taken: tuple[float | None, ...]
    """For every prompt the strength that it is reported at."""


def cross_fit(scores: Mapping[float, Values], parts: tuple[Sequence[int], Sequence[int]]) -> CrossFit:
    """Choose on one half of the prompts, report on the other, and the other way round. No prompt chooses for itself.

    Args:
        scores: by strength, a value for each prompt.
        parts: the halves, as places in those lists.
    """
    first, second = parts
    chosen = (best_strength(scores, second), best_strength(scores, first))
    taken = {place: strength for part, strength in zip(parts, chosen, strict=True) for place in part}
    return CrossFit(chosen, tuple(taken[place] for place in sorted(taken)))


def best_strength(scores: Mapping[float, Values], places: Sequence[int]) -> float | None:
    """The strength with the best mean at some places; of equals the weakest; None where nothing was scored.

    Strengths with fewer than half as many scored places as the best covered one are left out: a mean of few tells little.
    """
    there = {s: [value for p in places if (value := values[p]) is not None] for s, values in scores.items()}
    most = max((len(values) for values in there.values()), default=0)
    means = {s: math.fsum(v) / len(v) for s, v in there.items() if v and len(v) >= _LEAST_SCORED * most}
    return min(means, key=lambda strength: (-means[strength], abs(strength)), default=None)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other one beats in both coordinates, by the first coordinate."""
    front: list[int] = []
    highest = -math.inf
    for place in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        if points[place][1] > highest:
            highest = points[place][1]
            front.append(place)
    return front[::-1]
