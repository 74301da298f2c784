"""Laws of effect maps: ridge regression finds the map that made the effects, and R² is what its definition says."""

from __future__ import annotations

import pytest
import torch
from tests.evals.effects_rig import made_effects, random_map

from steersman.errors import DataError, RecipeError
from steersman.steering.methods.effect_map import EffectMap, explained, fit_ridge, fit_sgd, ridge_path

TRUE = random_map(8, 20)


def test_without_noise_and_penalty_the_map_that_made_the_effects_is_found() -> None:
    vectors = made_effects(TRUE, 60).vectors
    found = fit_ridge(3.0 * vectors, TRUE.predict(vectors), penalty=0.0)  # Lengths do not count.
    torch.testing.assert_close(found.weights, TRUE.weights, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.bias, TRUE.bias, atol=1e-4, rtol=1e-4)


def test_ridge_is_the_normal_equations_done_by_hand() -> None:
    effects = made_effects(TRUE, 30, noise=0.2)
    x, y = effects.vectors.double(), effects.effects.double()
    xc, yc = x - x.mean(0), y - y.mean(0)
    gram = xc.T @ xc
    by_hand = torch.linalg.solve(gram + 0.3 * gram.trace() / 8 * torch.eye(8), xc.T @ yc)
    found = fit_ridge(effects.vectors, effects.effects, penalty=0.3)
    torch.testing.assert_close(found.weights.double(), by_hand, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.bias.double(), y.mean(0) - x.mean(0) @ by_hand, atol=1e-4, rtol=1e-4)


def test_a_path_is_the_fits_one_by_one_and_penalties_shrink() -> None:
    effects = made_effects(TRUE, 30, noise=0.2)
    path = ridge_path(effects.vectors, effects.effects, [0.01, 1.0])
    for penalty, each in zip((0.01, 1.0), path, strict=True):
        torch.testing.assert_close(each.weights, fit_ridge(effects.vectors, effects.effects, penalty).weights)
    assert path[1].weights.norm() < path[0].weights.norm()


def test_fewer_vectors_than_dimensions_still_give_the_smallest_map() -> None:
    effects = made_effects(TRUE, 5)
    found = fit_ridge(effects.vectors, effects.effects, penalty=0.0)
    torch.testing.assert_close(found.predict(effects.vectors), effects.effects.float(), atol=2e-3, rtol=1e-2)


def test_sgd_goes_where_ridge_is_at_once() -> None:
    effects = made_effects(TRUE, 300, noise=0.05)
    ridge = fit_ridge(effects.vectors, effects.effects, penalty=0.0)
    sgd = fit_sgd(effects.vectors, effects.effects, epochs=200, learning_rate=0.02, seed=1)
    fresh = made_effects(TRUE, 100, start=1000)
    shares = [explained(each, fresh.vectors, fresh.effects).r_squared().mean for each in (ridge, sgd)]
    assert all(share is not None and share > 0.98 for share in shares)
    again = fit_sgd(effects.vectors, effects.effects, epochs=200, learning_rate=0.02, seed=1)
    assert torch.equal(sgd.weights, again.weights)


def test_r_squared_by_hand() -> None:
    effect_map = EffectMap(torch.eye(2), torch.zeros(2))
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    effects = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # Mean (0.5, 1): total 0.25+1 twice; residual 1.
    found = explained(effect_map, vectors, effects)
    assert found.residual.tolist() == [0.0, 1.0]
    assert found.total.tolist() == [1.25, 1.25]
    interval = found.r_squared()
    assert interval.mean == pytest.approx(1 - 1 / 2.5)
    assert interval.n == 2
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low <= interval.mean <= interval.high


def test_where_nothing_varies_there_is_no_share() -> None:
    same = torch.ones(3, 2)
    found = explained(EffectMap(torch.eye(2), torch.zeros(2)), torch.rand(3, 2) + 0.1, same).r_squared()
    assert (found.mean, found.n, found.total) == (None, 0, 3)


@pytest.mark.parametrize(
    ("vectors", "effects", "said"),
    [
        (torch.ones(3, 2), torch.ones(2, 4), "do not go together"),
        (torch.ones(1, 2), torch.ones(1, 4), "too few"),
        (torch.zeros(3, 2), torch.ones(3, 4), "all zero"),
        (torch.ones(3, 2), torch.full((3, 4), float("nan")), "NaN"),
    ],
)
def test_what_cannot_be_fitted_is_refused(vectors: torch.Tensor, effects: torch.Tensor, said: str) -> None:
    for fit in (fit_ridge, fit_sgd):
        with pytest.raises(DataError, match=said):
            fit(vectors, effects)


def test_maps_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(3, 2\), \(3,\)"):
        EffectMap(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(DataError, match="NaN"):
        EffectMap(torch.full((3, 2), float("nan")), torch.ones(2))
    with pytest.raises(DataError, match="penalty"):
        fit_ridge(torch.eye(3), torch.eye(3), penalty=-1.0)
    with pytest.raises(DataError, match="5 dimensions do not fit an effect map of 8"):
        TRUE.predict(torch.ones(5))
    with pytest.raises(RecipeError, match="feature 20 does not exist; this effect map has 20"):
        TRUE.column(20)
