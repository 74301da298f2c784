"""What is built from an SAE's features does what they do in the SAE, and stands without it."""

from __future__ import annotations

import math

import pytest
import torch
from tests.sae.toys import (
    ARCHITECTURES,
    D_MODEL,
    D_SAE,
    FIXED,
    NORMALISATIONS,
    residuals,
    toy_config,
    toy_sae,
    toy_weights,
)

from steersman.errors import RecipeError, SaeError
from steersman.sae.config import Architecture, Normalise
from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import TokenIs
from steersman.steering.edits import FeatureWeight
from steersman.steering.features import add_features, feature_vector, latent
from steersman.steering.where import Ramp, Where

FEATURES = range(0, D_SAE, 7)


@pytest.mark.parametrize("normalise", FIXED)
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "topk"])
def test_a_latent_reads_and_writes_as_in_its_sae(architecture: Architecture, normalise: Normalise) -> None:
    sae, h = toy_sae(architecture, normalise), residuals(60)
    acts = sae.encode(h)
    for feature in FEATURES:
        made = latent(sae, feature, "a label")
        assert (made.id, made.label) == (feature, "a label")
        torch.testing.assert_close(made.read(h), acts[:, feature], rtol=1e-4, atol=1e-5)
        one_more = acts.clone()
        one_more[:, feature] += 1.0
        torch.testing.assert_close(
            sae.decode(one_more) - sae.decode(acts), made.decoder().expand_as(h), rtol=1e-3, atol=1e-4
        )


def test_a_latent_that_does_not_stand_alone_is_refused_with_the_way_out() -> None:
    with pytest.raises(SaeError, match="as_jumprelu"):
        latent(toy_sae("topk"), 3)
    assert latent(toy_sae("topk").as_jumprelu(0.7), 3).threshold == pytest.approx(0.7)
    for normalise in set(NORMALISATIONS) - set(FIXED):
        with pytest.raises(SaeError, match=normalise):
            latent(toy_sae("relu", normalise), 3)
    for feature in (-1, D_SAE):
        with pytest.raises(SaeError, match=str(feature)):
            latent(toy_sae(), feature)


def dead_sae() -> SparseAutoencoder:
    """Feature 2 reads nothing, feature 5 writes nothing."""
    weights = toy_weights()
    weights["W_enc"][:, 2] = 0.0
    weights["W_dec"][5] = 0.0
    return SparseAutoencoder(toy_config(), **weights)


def test_dead_features_are_named() -> None:
    sae = dead_sae()
    for feature in (2, 5):
        with pytest.raises(RecipeError, match=f"feature {feature} is dead"):
            latent(sae, feature)
    with pytest.raises(RecipeError, match="feature 5 is dead"):
        feature_vector(sae, {1: 1.0, 5: 0.5})
    assert len(feature_vector(sae, {2: 1.0})) == D_MODEL


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_feature_vector_points_where_the_sae_writes(architecture: Architecture, normalise: Normalise) -> None:
    sae, h = toy_sae(architecture, normalise), residuals(1)
    one, other = torch.zeros(1, D_SAE), torch.zeros(1, D_SAE)
    other[0, 7] = 1.0
    written = (sae.decode(other, h) - sae.decode(one, h))[0]
    made = feature_vector(sae, {7: 2.5})
    assert made.norm == pytest.approx(2.5, rel=1e-5)
    torch.testing.assert_close(made.tensor, 2.5 * written / written.norm(), rtol=1e-4, atol=1e-4)


def test_a_feature_vector_is_a_weighted_sum_whatever_the_order() -> None:
    sae = toy_sae()
    parts = {3: 1.0, 11: -0.5, 20: 2.0}
    total = sum(
        (weight * feature_vector(sae, {feature: 1.0}).tensor for feature, weight in parts.items()), torch.zeros(D_MODEL)
    )
    torch.testing.assert_close(feature_vector(sae, parts).tensor, total)
    torch.testing.assert_close(feature_vector(sae, dict(reversed(parts.items()))).tensor, total)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({}, RecipeError, "add up to nothing"),
        ({1: 0.0}, RecipeError, "add up to nothing"),
        ({1: math.nan}, RecipeError, "feature 1"),
        ({2: math.inf}, RecipeError, "feature 2"),
        ({D_SAE: 1.0}, SaeError, f"feature {D_SAE}"),
        ({-1: 1.0}, SaeError, "feature -1"),
    ],
    ids=repr,
)
def test_weights_that_make_no_vector_are_refused(
    weights: dict[int, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        feature_vector(toy_sae(), weights)


def test_adding_features_names_them() -> None:
    sae, where, schedule, when = toy_sae(), Where(scope="generated"), Ramp(tokens=3), TokenIs(token_ids=(1,))
    made = add_features(
        sae, {3: 1.0, 11: -0.5}, strength=0.4, labels={3: "pirates"}, where=where, schedule=schedule, when=when
    )
    assert made.features == (FeatureWeight(id=3, weight=1.0, label="pirates"), FeatureWeight(id=11, weight=-0.5))
    assert made.vector == feature_vector(sae, {3: 1.0, 11: -0.5})
    assert (made.layer, made.strength, made.unit) == (sae.config.layer, 0.4, "residual_norm")
    assert (made.where, made.schedule, made.when) == (where, schedule, when)
    plain = add_features(sae, {3: 1.0}, strength=1.0)
    assert (plain.where, plain.when) == (Where(), None)
