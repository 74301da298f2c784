"""SAE-targeted steering: the vector that moves chosen features and little else, aimed with a measured effect map.

Chalnev, Siu and Conmy, arXiv:2411.02193. A decoder row writes a feature into one layer, but the text that the model then writes
often shows other features more; the map knows, as it was fitted to what vectors did to such text. Needs no model, no examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.errors import RecipeError
from steersman.facts import check_finite
from steersman.steering.edits import Add
from steersman.steering.methods.effect_map import EffectMap
from steersman.steering.methods.effect_map_file import StoredMap
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

Variant = Literal["map", "pinv", "rotation"]
"""How a vector is aimed: along the map's own columns (the paper's), by its pseudo-inverse, or along decoder rows turned by the
rotation that brings decoder rows closest to the map's columns."""

_SMALLEST = 1e-6  # Singular values of M below this share of the largest are noise to the pseudo-inverse.


def fit(
    stored: StoredMap,
    weights: Mapping[int, float],
    *,
    name: str,
    strength: float | None = None,
    variant: Variant = "map",
    bias_correction: bool = True,
    decoder: Float[Tensor, "d_sae d_model"] | None = None,
) -> Recipe:
    """One `add` edit at the SAE's layer: the unit vector `targeted` gives, `(d_model,)`.

    Args:
        stored: the effect map; the recipe is bound to its SAE and model.
        weights: how much to raise or lower each feature, by its index; only their ratios count.
        name: of the recipe.
        strength: in mean residual norms; by default the median at which effects were measured.
        variant: as `targeted`.
        bias_correction: as `targeted`.
        decoder: as `targeted`.

    Raises:
        RecipeError: as `targeted`.
    """
    effect_map, facts = stored
    aim = targeted(effect_map, weights, variant=variant, bias_correction=bias_correction, decoder=decoder)
    own = effect_map.predict(aim)
    edit = Add(layer=facts.sae.layer, vector=Vector(aim), strength=facts.strength if strength is None else strength)
    return Recipe(
        name=name,
        edits=(edit,),
        model=facts.model,
        sae=facts.sae,
        method="sae-ts",
        data={
            "features": {str(feature): weight for feature, weight in weights.items()},
            "predicted": {str(feature): round(float(own[feature]), 6) for feature in weights},
            "variant": variant,
            "bias_correction": bias_correction,
            "measured_vectors": dict(facts.vectors),
            "r_squared": facts.r_squared.mean,
        },
    )


def targeted(
    effect_map: EffectMap,
    weights: Mapping[int, float],
    *,
    variant: Variant = "map",
    bias_correction: bool = True,
    decoder: Float[Tensor, "d_sae d_model"] | None = None,
) -> Float[Tensor, " d_model"]:
    """The unit vector that moves some features and, as far as the map knows, little else.

    For one feature j and the paper's variant: `s = unit(M_j) - unit(M b)`, renormalised. For several, the first part is the
    unit sum of `weight * unit(M_j)`.

    Args:
        effect_map: what vectors do.
        weights: how much to raise (or, negative, lower) each feature, by its index; only their ratios count.
        variant: what takes the place of M_j. `pinv`: the target times the pseudo-inverse of M, and b with it, where the paper
            inverts the difference of target and b, whose ratio is arbitrary. `rotation`: the decoder row, turned.
        bias_correction: take off the direction that does what every vector does.
        decoder: the SAE's decoder rows, for `rotation`.

    Raises:
        RecipeError: no features, one that does not exist or cannot be aimed at, weights that are not finite or cancel out, an
            unknown variant, or `rotation` without decoder rows that fit.
    """
    if not weights or not any(weights.values()):
        raise RecipeError("name at least one feature to aim at, with a weight that is not 0")
    for feature, weight in weights.items():
        check_finite(f"feature {feature}", weight=weight)
        effect_map.column(feature)
    found = get_args(Variant)
    if variant not in found:
        raise RecipeError(f"unknown variant {variant!r}; use one of {', '.join(found)}")
    ids, factors = list(weights), torch.tensor(list(weights.values()), dtype=torch.float64)
    m, b = effect_map.weights.double().cpu(), effect_map.bias.double().cpu()
    back = m @ b
    if variant == "pinv":
        inverse = torch.linalg.pinv(m @ m.T, hermitian=True, rtol=_SMALLEST**2)
        parts, back = inverse @ m[:, ids], inverse @ back
    elif variant == "rotation":
        parts = _turned(m, decoder, ids)
    else:
        parts = F.normalize(m[:, ids], dim=0)  # arXiv:2411.02193, section 3.2.
    aim = parts @ factors
    if not float(aim.norm()) > 1e-9 * float(parts.norm(dim=0) @ factors.abs()):
        raise RecipeError("the weights of the features cancel out; nothing is left to aim at")
    if bias_correction and bool(back.any()):
        aim = F.normalize(aim, dim=0) - F.normalize(back, dim=0)
        if not float(aim.norm()) > 1e-9:
            raise RecipeError("the target is what every vector does anyway; leave the bias correction out")
    return F.normalize(aim, dim=0).float()


def _turned(m: Tensor, decoder: Tensor | None, ids: list[int]) -> Tensor:
    """Unit decoder rows `(d_model, n)` turned as M's columns lie to decoder rows (orthogonal Procrustes, Schönemann 1966)."""
    if decoder is None or tuple(decoder.shape) != (m.shape[1], m.shape[0]):
        raise RecipeError("the rotation needs the decoder rows of the SAE that the effect map is of")
    rows = F.normalize(decoder.double().cpu(), dim=1)
    left, _, right = torch.linalg.svd(F.normalize(m, dim=0) @ rows)
    turned: Tensor = left @ right @ rows[ids].T
    return turned
