"""The best cut is the best of all cuts, and what is reported of it is what was counted."""

from __future__ import annotations

import random

import pytest

from steersman.errors import DataError
from steersman.steering.methods.thresholds import best_cut, detection, f1_score


def f1_at(threshold: float, scores: list[float], truth: list[bool]) -> float:
    fired = [score > threshold for score in scores]
    hits = sum(one and other for one, other in zip(fired, truth, strict=True))
    return f1_score(hits, sum(fired) - hits, sum(truth))


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_beats_the_best_cut(seed: int) -> None:
    draw = random.Random(seed)
    truth = [True, False, *(draw.random() < 0.4 for _ in range(20))]
    scores = [round(draw.gauss(float(each), 1.0), 1) for each in truth]  # Rounded, so that some are equal.
    cut = best_cut(scores, truth)
    tried = [-99.0, *(score + step for score in scores for step in (-0.05, 0.05))]
    assert cut.f1 == pytest.approx(max(f1_at(each, scores, truth) for each in tried))
    assert cut.f1 == pytest.approx(f1_at(cut.threshold, scores, truth))


def test_of_equal_cuts_the_widest_gap_is_taken() -> None:
    cut = best_cut([0.0, 1.0, 5.0, 6.0], [False, False, True, True])
    assert (cut.threshold, cut.f1) == (3.0, 1.0)


def test_hopeless_scores_fire_always() -> None:
    cut = best_cut([1.0, 1.0, 1.0], [True, False, True])
    assert cut.threshold < 1.0
    assert cut.f1 == pytest.approx(0.8)


def test_detection_counts() -> None:
    found = detection([True, True, False, True, False, False], [True, True, True, False, False, False])
    assert found.precision.mean == found.recall.mean == found.f1.mean == pytest.approx(2 / 3)
    assert found.false_alarms.mean == pytest.approx(1 / 3)
    assert found.f1_always == pytest.approx(2 / 3)
    assert (found.precision.n, found.recall.n, found.f1.n) == (3, 3, 6)
    for each in (found.precision, found.recall, found.f1):
        assert each.low is not None
        assert each.high is not None
        assert each.low <= 2 / 3 <= each.high


def test_where_nothing_fires_precision_is_missing_and_recall_0() -> None:
    found = detection([False] * 4, [True, True, False, False])
    assert found.precision.mean is None
    assert found.precision.n == 0
    assert found.recall.mean == found.f1.mean == 0.0


def test_one_kind_alone_is_refused() -> None:
    with pytest.raises(DataError, match="both kinds"):
        best_cut([1.0, 2.0], [True, True])
    with pytest.raises(DataError, match="not finite"):
        best_cut([1.0, float("nan")], [True, False])
    with pytest.raises(DataError, match="nothing to report on"):
        detection([True], [True])
