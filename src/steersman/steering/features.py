"""Build what steers from the features of an SAE: latents to read and write, vectors to add. Pure functions.

What they return stands on its own: a recipe of it runs without the SAE.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from steersman.errors import RecipeError, SaeError
from steersman.facts import check_finite
from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import Condition
from steersman.steering.edits import Add, FeatureWeight
from steersman.steering.target import Latent
from steersman.steering.vector import Vector
from steersman.steering.where import Constant, Schedule, Where


def latent(sae: SparseAutoencoder, feature: int, label: str | None = None) -> Latent:
    """One feature, to clamp, scale, ablate or wait for at the SAE's layer.

    Raises:
        SaeError: no such feature, or one that does not stand on its own: of a topk SAE, or of one that normalises token by
            token.
        RecipeError: the feature reads or writes nothing.
    """
    rows = sae.latent_rows(feature)
    for name, row in (("reads", rows.encoder_row), ("writes", rows.decoder_row)):
        if not row.any():
            raise RecipeError(f"feature {feature} is dead: it {name} nothing (a row of zeros); choose another one")
    return Latent(
        id=feature,
        encoder_row=Vector(rows.encoder_row),
        encoder_bias=rows.encoder_bias,
        decoder_row=Vector(rows.decoder_row),
        threshold=rows.threshold,
        label=label,
    )


def feature_vector(sae: SparseAutoencoder, weights: Mapping[int, float]) -> Vector:
    """The sum of `weight * unit(decoder row)` over features: each points as it writes, as long as its weight says.

    Works for SAEs of every architecture and normalisation, since only the orientation of a row counts.

    Args:
        sae: whose features they are.
        weights: weight of each feature, by its index; negative ones push away from it.

    Raises:
        SaeError: a feature that does not exist.
        RecipeError: a weight that is not finite, a dead feature, or weights that cancel out or name no feature at all.
    """
    total = torch.zeros(sae.config.d_model, dtype=torch.float64)
    for feature, weight in weights.items():
        if not 0 <= feature < sae.config.d_sae:
            raise SaeError(f"feature {feature} does not exist; this SAE has {sae.config.d_sae}, counted from 0")
        check_finite(f"feature {feature}", weight=weight)
        row = sae.W_dec[feature].cpu().double()
        if not row.any():
            raise RecipeError(f"feature {feature} is dead: it writes nothing (a row of zeros); choose another one")
        total += weight * row / row.norm()
    if not total.any():
        raise RecipeError("the weights of the features add up to nothing; give at least one that is not 0")
    return Vector(total)


def add_features(
    sae: SparseAutoencoder,
    weights: Mapping[int, float],
    *,
    strength: float,
    labels: Mapping[int, str] | None = None,
    where: Where | None = None,
    schedule: Schedule | None = None,
    when: Condition | None = None,
) -> Add:
    """An edit that adds `feature_vector(sae, weights)` at the SAE's layer, and names the features it was summed from.

    Args:
        sae: whose features they are.
        weights: weight of each feature, by its index; only their ratios count.
        strength: length of what is added, in multiples of the mean residual norm.
        labels: what features stand for, by index; for people.
        where: which tokens; by default all but the first.
        schedule: factor on the strength as the answer grows.
        when: only at tokens where this holds.

    Raises:
        SaeError, RecipeError: as `feature_vector`.
    """
    return Add(
        layer=sae.config.layer,
        vector=feature_vector(sae, weights),
        strength=strength,
        features=tuple(
            FeatureWeight(id=feature, weight=weight, label=(labels or {}).get(feature))
            for feature, weight in weights.items()
        ),
        where=where or Where(),
        schedule=schedule or Constant(),
        when=when,
    )
