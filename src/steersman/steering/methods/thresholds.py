"""Where to cut a score so that it tells two kinds apart, and how well a cut did on others. Pure functions on numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.intervals import Interval

_RESAMPLES = 2000


@fact
class Cut:
    """A threshold: what lies above it counts as a trigger."""

    threshold: float
    f1: float
    """On the scores that it was chosen by."""
    margin: float
    """Distance of the scores on either side, in standard deviations of the scores."""


@fact
class Detection:
    """How well triggers were told from others; intervals by stratified bootstrap (Efron 1979), 95 %."""

    precision: Interval
    """Of what fired, the share that should; its mean is None where nothing fired."""
    recall: Interval
    """Of what should fire, the share that did."""
    f1: Interval
    """Their harmonic mean."""
    false_alarms: Interval
    """Of what should not fire, the share that did."""
    f1_always: float
    """F1 of firing every time, the least that a condition has to beat."""


def best_cut(scores: Sequence[float], truth: Sequence[bool]) -> Cut:
    """The threshold with the best F1; of several, the one in the widest gap between scores.

    Every place between two different scores is tried, and one below all of them.

    Raises:
        DataError: no triggers, no others, or scores that are not finite.
    """
    if not any(truth) or all(truth):
        raise DataError(
            "a threshold needs prompts of both kinds; give some that should trigger and some that should not"
        )
    if not all(map(math.isfinite, scores)):
        raise DataError("a score is not finite; the model's residual stream overflows there, so choose another layer")
    ranked = sorted(zip(scores, truth, strict=True))
    spread = float(torch.tensor(scores, dtype=torch.float64).std()) or 1.0
    positives = sum(truth)
    hits, fired = positives, len(ranked)
    found = [Cut(threshold=ranked[0][0] - spread, f1=f1_score(hits, fired - hits, positives), margin=0.0)]
    for (here, is_trigger), (above, _) in itertools.pairwise(ranked):
        hits, fired = hits - is_trigger, fired - 1
        middle = (here + above) / 2
        if here < middle < above:
            score = f1_score(hits, fired - hits, positives)
            found.append(Cut(threshold=middle, f1=score, margin=(above - here) / spread))
    return max(found, key=lambda cut: (cut.f1, cut.margin))


def detection(fired: Sequence[bool], truth: Sequence[bool], *, seed: int = 0) -> Detection:
    """Precision, recall and F1 with intervals.

    Raises:
        DataError: no triggers or no others.
    """
    right = [one for one, is_trigger in zip(fired, truth, strict=True) if is_trigger]
    wrong = [one for one, is_trigger in zip(fired, truth, strict=True) if not is_trigger]
    if not right or not wrong:
        raise DataError("nothing to report on; give prompts that should trigger and prompts that should not")
    made = torch.Generator().manual_seed(seed)
    hits, alarms = (_resampled(each, made) for each in (right, wrong))
    # Where nothing fired there is no precision: such a sample is left out of its interval.
    precision = (hits / (hits + alarms))[hits + alarms > 0]
    n = len(right)
    return Detection(
        precision=_interval(
            sum(right) / (sum(right) + sum(wrong)) if any(fired) else None, precision, sum(fired), sum(fired)
        ),
        recall=_interval(sum(right) / n, hits / n, n, n),
        f1=_interval(f1_score(sum(right), sum(wrong), n), 2 * hits / (hits + alarms + n), len(truth), len(truth)),
        false_alarms=_interval(sum(wrong) / len(wrong), alarms / len(wrong), len(wrong), len(wrong)),
        f1_always=f1_score(n, len(wrong), n),
    )


def f1_score(hits: int, false_alarms: int, positives: int) -> float:
    """`2 hits / (hits + false alarms + positives)`."""
    return 2 * hits / (hits + false_alarms + positives)


def _resampled(outcomes: Sequence[bool], made: torch.Generator) -> Tensor:
    """Sums of samples drawn with replacement, `(resamples,)`."""
    index = torch.randint(len(outcomes), (_RESAMPLES, len(outcomes)), generator=made)
    return torch.tensor(outcomes, dtype=torch.float64)[index].sum(1)


def _interval(mean: float | None, samples: Tensor, n: int, total: int) -> Interval:
    if mean is None or not len(samples):
        return Interval(mean=None, low=None, high=None, n=0, total=total)
    low, high = torch.quantile(samples, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(mean=mean, low=low, high=high, n=n, total=total)
