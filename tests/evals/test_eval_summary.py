"""Results are put together from graded answers; gaps stay gaps."""

from __future__ import annotations

import pytest

from steersman.evals.facts import Fitted, Grade
from steersman.evals.summary import Swept, results_of

_HALVES = ((0, 1), (2, 3))


def graded(value: float | None) -> Grade:
    missing = None if value is not None else "no answer"
    return Grade(behaviour=value, coherence=1.0, relevance=1.0, fluency=1.0, missing=missing)


def swept(grades: dict[float, list[float | None]]) -> Swept:
    return Swept(Fitted(name="caa"), {}, {s: [graded(value) for value in values] for s, values in grades.items()})


def test_the_best_product_in_sample_is_not_that_of_a_strength_that_was_hardly_scored() -> None:
    results, _ = results_of([swept({0.1: [0.4, 0.4, 0.5, 0.5], 0.2: [0.9, None, None, None]})], 4, _HALVES)
    assert results[0].best_product == pytest.approx(0.45)


def test_a_method_without_answers_has_no_best_product() -> None:
    results, fits = results_of([swept({})], 4, _HALVES)
    assert results[0].best_product is None
    assert fits["caa"].taken == (None, None, None, None)
    assert results[0].scores["product"].n == 0
