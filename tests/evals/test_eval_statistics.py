"""Sign flips, Holm, cross-fitting and the Pareto front, against small cases worked out by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steersman.errors import DataError
from steersman.evals.statistics import (
    best_strength,
    compare,
    cross_fit,
    halves,
    harmonic_mean,
    holm,
    pareto,
    sign_flip,
    sign_test,
)
from steersman.intervals import bootstrap


def test_sign_flip_of_one_sided_differences_is_the_smallest_there_is() -> None:
    assert sign_flip([0.1, 0.2, 0.3, 0.4]) == pytest.approx(2 / 16)
    assert sign_flip([-0.1, -0.2, -0.3, -0.4]) == pytest.approx(2 / 16)
    assert sign_flip([1.0, -1.0]) == 1.0
    assert sign_flip([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip([0.3]) is None
    assert sign_flip([]) is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=6))
def test_sign_flip_counts_all_flips(values: list[int]) -> None:
    flips = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    extreme = sum(abs(each) >= abs(sum(values)) for each in flips) / len(flips)
    assert sign_flip([float(v) for v in values]) == pytest.approx(extreme)


def test_many_pairs_are_drawn_close_to_the_exact_answer_and_never_give_zero() -> None:
    mixed = [0.3, -0.1, 0.2, 0.4, -0.2, 0.1, 0.3, -0.3, 0.2]
    exact, drawn = sign_flip(mixed), sign_flip([*mixed, *[0.0] * 12])
    assert exact is not None
    assert drawn == pytest.approx(exact, abs=0.02)
    assert 0 < (sign_flip([1.0] * 40) or 0.0) < 1e-3


def test_holm_by_hand_and_missing_ones_are_not_counted() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    assert found == {"a": pytest.approx(0.03), "c": pytest.approx(0.06), "b": pytest.approx(0.06), "d": None}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_sign_test_by_hand() -> None:
    assert sign_test(5, 0) == sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(4, 1) == pytest.approx(2 * 6 / 32)
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 0) is None


def test_a_single_value_has_no_interval() -> None:
    found = bootstrap([None, 0.4])
    assert (found.mean, found.low, found.high, found.n, found.total) == (0.4, None, None, 1, 2)
    same = compare([0.5, None], [0.2, None])
    assert (same.difference.low, same.p) == (None, None)


def test_harmonic_mean_is_zero_where_one_is_and_missing_where_one_is() -> None:
    assert harmonic_mean([2.0, 1.0, 2.0]) == pytest.approx(3 / (0.5 + 1 + 0.5))
    assert harmonic_mean([2.0, 0.0, 2.0]) == 0.0
    assert harmonic_mean([2.0, None, 0.0]) is None


def test_halves_share_nothing_and_hold_everything() -> None:
    first, second = halves(9, seed=3)
    assert sorted([*first, *second]) == list(range(9))
    assert abs(len(first) - len(second)) == 1
    assert halves(9, seed=3) == (first, second)
    assert halves(9, seed=4) != (first, second)
    with pytest.raises(DataError, match="at least 4"):
        halves(3, 0)


def test_no_prompt_is_reported_at_a_strength_that_it_helped_to_choose() -> None:
    # On prompts 0 and 1 strength 1 looks best, on 2 and 3 strength 2 does: each half is reported at what the other liked.
    scores = {1.0: [0.9, 0.9, 0.1, 0.1], 2.0: [0.2, 0.2, 0.8, 0.8]}
    fit = cross_fit(scores, ((0, 1), (2, 3)))
    assert fit.strengths == (2.0, 1.0)
    assert fit.taken == (2.0, 2.0, 1.0, 1.0)


def test_strengths_with_gaps() -> None:
    assert best_strength({1.0: [None, None], 2.0: [0.1, 0.2]}, (0, 1)) == 2.0
    assert best_strength({1.0: [None, None]}, (0, 1)) is None
    # One lucky answer of four does not outweigh four that were scored.
    assert best_strength({1.0: [0.3] * 4, 2.0: [0.9, None, None, None]}, range(4)) == 1.0
    # Of equals the weakest.
    assert best_strength({2.0: [0.5], 1.0: [0.5]}, (0,)) == 1.0
    assert cross_fit({}, ((0, 1), (2, 3))).taken == (None,) * 4


def test_a_comparison_leaves_out_what_is_missing_and_counts_it() -> None:
    found = compare([1.0, None, 0.5, 0.5], [0.5, 0.1, None, 0.0])
    assert (found.difference.n, found.difference.total) == (2, 4)
    assert found.difference.mean == pytest.approx(0.5)
    assert found.p == pytest.approx(0.5)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [(0.1, 0.9), (0.5, 0.5), (0.4, 0.4), (0.9, 0.1), (0.5, 0.3)]
    assert [points[place] for place in pareto(points)] == [(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)]
    assert pareto([]) == []
