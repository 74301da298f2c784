"""Laws of targeted vectors: what the paper's formula says, what each variant inverts or turns, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.evals.effects_rig import D_SAE, LAYER, random_map, ref_of, toy

from steersman.errors import RecipeError
from steersman.intervals import Interval
from steersman.steering.edits import Add
from steersman.steering.methods.effect_map import EffectMap
from steersman.steering.methods.effect_map_file import EffectMapFacts, StoredMap
from steersman.steering.methods.sae_ts import fit, targeted

MAP = random_map()
M, B = MAP.weights.double(), MAP.bias.double()


def unit(vector: torch.Tensor) -> torch.Tensor:
    return F.normalize(vector.double(), dim=0)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one.double(), other.double(), atol=1e-5, rtol=1e-5)


def test_the_papers_formula() -> None:
    close(targeted(MAP, {4: 1.0}), unit(unit(M[:, 4]) - unit(M @ B)))
    close(targeted(MAP, {4: 7.5}), targeted(MAP, {4: 1.0}))  # Only ratios count.
    close(targeted(MAP, {4: 1.0}, bias_correction=False), unit(M[:, 4]))


def test_several_features_with_signs_add_their_unit_columns() -> None:
    aim = 2.0 * unit(M[:, 1]) - 0.5 * unit(M[:, 9])
    close(targeted(MAP, {1: 2.0, 9: -0.5}), unit(unit(aim) - unit(M @ B)))
    close(targeted(MAP, {9: -1.0}, bias_correction=False), -targeted(MAP, {9: 1.0}, bias_correction=False))


def test_the_pseudo_inverse_moves_one_feature_alone_where_that_can_be() -> None:
    square = EffectMap(random_map(6, 6).weights, torch.zeros(6))
    effects = square.predict(targeted(square, {2: 1.0}, variant="pinv"))
    assert float(effects[2]) > 0
    assert float(effects[[0, 1, 3, 4, 5]].abs().max()) < 1e-3 * float(effects[2])
    wide = targeted(MAP, {3: 1.0}, variant="pinv", bias_correction=False)
    close(wide, unit(torch.linalg.pinv(M)[3]))


def test_the_rotation_finds_the_turn_between_decoder_and_map() -> None:
    decoder = toy().W_dec
    turn, _ = torch.linalg.qr(
        torch.randn(decoder.shape[1], decoder.shape[1], generator=torch.Generator().manual_seed(1))
    )
    turned = EffectMap(turn @ decoder.T * torch.rand(1, D_SAE).add(0.5), torch.zeros(D_SAE))
    found = targeted(turned, {5: 1.0}, variant="rotation", decoder=decoder)
    close(found, unit(turn @ decoder[5]))


def test_vectors_have_norm_one_and_raise_their_feature() -> None:
    for feature in range(0, D_SAE, 7):
        aim = targeted(MAP, {feature: 1.0}, bias_correction=False)
        assert float(aim.norm()) == pytest.approx(1.0, abs=1e-5)
        others = F.normalize(torch.randn(200, MAP.d_model, generator=torch.Generator().manual_seed(feature)), dim=1)
        assert float(MAP.predict(aim)[feature]) > float(MAP.predict(others)[:, feature].max())


def test_what_cannot_be_aimed_at_is_refused() -> None:
    silent = EffectMap(MAP.weights * (torch.arange(D_SAE) != 6), MAP.bias)
    same = EffectMap(MAP.weights[:, [0, 0, 1]], torch.zeros(3))
    for effect_map, weights, said in (
        (MAP, {}, "at least one feature"),
        (MAP, {3: 0.0}, "at least one feature"),
        (MAP, {D_SAE: 1.0}, "does not exist"),
        (MAP, {3: float("inf")}, "finite"),
        (silent, {6: 1.0}, "no measured vector ever changed feature 6"),
        (same, {0: 1.0, 1: -1.0}, "cancel out"),
    ):
        with pytest.raises(RecipeError, match=said):
            targeted(effect_map, weights)
    with pytest.raises(RecipeError, match="unknown variant 'pinvs'"):
        targeted(MAP, {1: 1.0}, variant="pinvs")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="decoder rows"):
        targeted(MAP, {1: 1.0}, variant="rotation")


def test_a_recipe_names_where_it_came_from() -> None:
    sae = toy()
    facts = EffectMapFacts(
        sae=ref_of(sae),
        vectors={"row": 10, "pair": 5, "random": 5},
        penalty=0.1,
        strength=0.4,
        r_squared=Interval(mean=0.5, low=0.4, high=0.6, n=9, total=9),
        r_squared_by_kind={},
        data={},
    )
    recipe = fit(StoredMap(MAP, facts), {4: 1.0, 7: -2.0}, name="up")
    (edit,) = recipe.edits
    assert isinstance(edit, Add)
    assert (edit.layer, edit.strength, recipe.sae, recipe.method) == (LAYER, 0.4, ref_of(sae), "sae-ts")
    close(edit.vector.tensor, targeted(MAP, {4: 1.0, 7: -2.0}))
    assert recipe.data["features"] == {"4": 1.0, "7": -2.0}
    assert fit(StoredMap(MAP, facts), {4: 1.0}, name="up", strength=0.2).edits[0].strength == 0.2
