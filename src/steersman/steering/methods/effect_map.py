"""A linear map from steering vectors to what they do to the features of an SAE, and how it is fitted.

Chalnev, Siu and Conmy, arXiv:2411.02193: steering with the unit vector x, at the strength where plain text becomes a set amount
harder to predict, changes the mean activations of all features by about `y = x M + b`. Pure functions of tensors; knows
nothing of how effects are measured (`evals.effects`), kept (`effect_map_file`) or aimed with (`sae_ts`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError, RecipeError
from steersman.intervals import Interval

_CHUNK = 256  # Rows of effects that are held in float32 or float64 at once.
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class EffectMap:
    """`y = x M + b`: the change of every feature's mean activation under the unit steering vector x. Float32.

    Raises:
        DataError: shapes that do not fit each other, or numbers that are not finite.
    """

    weights: Float[Tensor, "d_model d_sae"]
    """M."""
    bias: Float[Tensor, " d_sae"]
    """b: what steering does whatever the direction, as it is added at that strength."""

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.bias.shape != self.weights.shape[1:]:
            raise DataError(
                f"an effect map has M (d_model, d_sae) and b (d_sae), not {tuple(self.weights.shape)}, {tuple(self.bias.shape)}"
            )
        for name, tensor in (("M", self.weights), ("b", self.bias)):
            if not bool(tensor.isfinite().all()):
                raise DataError(f"{name} of the effect map holds NaN or infinite numbers; fit it again")

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.weights.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.weights.shape[1]

    def predict(self, vectors: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_sae"]:
        """Change of every feature's mean activation under each vector, whatever its length.

        Raises:
            DataError: vectors of another width, or of length 0.
        """
        return _units(vectors, self.d_model) @ self.weights + self.bias

    def column(self, feature: int) -> Float[Tensor, " d_model"]:
        """M_j, the direction that changes feature j most.

        Raises:
            RecipeError: no such feature, or one that no measured vector ever changed.
        """
        if not 0 <= feature < self.d_sae:
            raise RecipeError(f"feature {feature} does not exist; this effect map has {self.d_sae}, counted from 0")
        column = self.weights[:, feature]
        if not bool(column.any()):
            raise RecipeError(
                f"no measured vector ever changed feature {feature}, so nothing can aim at it; choose another one"
            )
        return column


# --- fitting


def fit_ridge(
    vectors: Float[Tensor, "n d_model"], effects: Float[Tensor, "n d_sae"], penalty: float = 0.01
) -> EffectMap:
    """The map with the smallest squared error plus `penalty * n * v * |M|^2`, in closed form; b is not penalised.

    The paper descends to the unpenalised optimum by SGD; this is it at penalty 0, given enough vectors. v is the mean variance
    of a coordinate of x, so that the penalty means the same at every width.

    Args:
        vectors: what was added; brought to norm 1.
        effects: what each changed, in any floating-point format.
        penalty: 0 or more; above 0 for fewer vectors than dimensions.

    Raises:
        DataError: too few vectors, shapes that do not fit, numbers that are not finite, or a negative penalty.
    """
    return ridge_path(vectors, effects, [penalty])[0]


def ridge_path(
    vectors: Float[Tensor, "n d_model"], effects: Float[Tensor, "n d_sae"], penalties: list[float]
) -> list[EffectMap]:
    """`fit_ridge` at several penalties for little more than the price of one.

    Raises:
        DataError: as `fit_ridge`.
    """
    x = _checked(vectors, effects).double()
    if any(not (math.isfinite(penalty) and penalty >= 0) for penalty in penalties):
        raise DataError("the penalty of a ridge regression must be finite and 0 or more")
    middle = x.mean(0)
    centred = x - middle
    mean = torch.zeros(effects.shape[1], dtype=torch.float64)
    cross = torch.zeros(x.shape[1], effects.shape[1], dtype=torch.float64)
    for rows, part in zip(torch.split(centred, _CHUNK), torch.split(effects, _CHUNK), strict=True):
        mean += part.double().sum(0)
        cross += rows.T @ part.double()  # Centred x: the mean of y drops out.
    mean /= len(x)
    values, basis = torch.linalg.eigh(centred.T @ centred)
    rotated, scale = basis.T @ cross, float(values.sum()) / x.shape[1]
    maps = []
    for penalty in penalties:
        shrunk = values + penalty * scale
        kept = shrunk > 1e-12 * float(values[-1])  # Directions that no vector has say nothing.
        inverse = torch.where(kept, 1 / shrunk.where(kept, torch.ones_like(shrunk)), 0.0)
        weights = basis @ (rotated * inverse[:, None])
        maps.append(EffectMap(weights.float(), (mean - middle @ weights).float()))
    return maps


def fit_sgd(
    vectors: Float[Tensor, "n d_model"],
    effects: Float[Tensor, "n d_sae"],
    *,
    epochs: int = 15,
    learning_rate: float = 2e-4,
    batch: int = 64,
    seed: int = 0,
) -> EffectMap:
    """The same map as the authors' code fits it, for comparison: Adam on the mean squared error, cosine decay by epoch.

    Raises:
        DataError: as `fit_ridge`.
    """
    x = _checked(vectors, effects)
    made = torch.Generator().manual_seed(seed)
    # Uniform as He et al. 2015, which they start from: variance 2 / fan_in, and PyTorch takes d_sae for the fan.
    bound = math.sqrt(6.0 / effects.shape[1])
    weights = (torch.rand(x.shape[1], effects.shape[1], generator=made) * 2 - 1).mul_(bound).requires_grad_()
    bias = torch.zeros(effects.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([weights, bias], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x), generator=made), batch):
                optimiser.zero_grad()
                F.mse_loss(x[rows] @ weights + bias, effects[rows].float()).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            schedule.step()
    return EffectMap(weights.detach(), bias.detach())


class Fit(NamedTuple):
    """How much of the effects a map explains, vector by vector."""

    residual: Float[Tensor, " n"]
    """Squared error, summed over features."""
    total: Float[Tensor, " n"]
    """Squared distance from the mean effect, summed over features."""

    def r_squared(self, *, level: float = 0.95, seed: int = 0) -> Interval:
        """Share of the variance of all features that is explained, with a bootstrap interval over vectors.

        Features count by how much they vary. `mean` holds the share itself, None where nothing varies.
        """
        n, total = len(self.total), float(self.total.sum())
        if n == 0 or total == 0.0:
            return Interval(mean=None, low=None, high=None, n=0, total=n)
        made = torch.Generator().manual_seed(seed)
        picks = torch.randint(n, (_RESAMPLES, n), generator=made)
        shares = (1 - self.residual[picks].sum(1) / self.total[picks].sum(1).clamp(min=1e-30)).sort().values
        low, high = (float(shares[round(at * (_RESAMPLES - 1))]) for at in ((1 - level) / 2, (1 + level) / 2))
        return Interval(mean=1 - float(self.residual.sum()) / total, low=low, high=high, n=n, total=n)


def explained(effect_map: EffectMap, vectors: Float[Tensor, "n d_model"], effects: Float[Tensor, "n d_sae"]) -> Fit:
    """Compare what a map predicts with what was measured, about the mean of what was measured.

    Raises:
        DataError: vectors and effects that do not fit the map.
    """
    x = _checked(vectors, effects)
    if effects.shape[1] != effect_map.d_sae:
        raise DataError(f"effects on {effects.shape[1]} features do not fit a map of {effect_map.d_sae}")
    mean = torch.stack([part.double().sum(0) for part in torch.split(effects, _CHUNK)]).sum(0) / len(effects)
    residual, total = [], []
    for rows, part in zip(torch.split(x, _CHUNK), torch.split(effects, _CHUNK), strict=True):
        residual.append((effect_map.predict(rows) - part.float()).double().square().sum(1))
        total.append((part.double() - mean).square().sum(1))
    return Fit(torch.cat(residual), torch.cat(total))


def _checked(vectors: Tensor, effects: Tensor) -> Tensor:
    """Unit vectors in float32, once both are known to go together."""
    if vectors.ndim != 2 or effects.ndim != 2 or len(vectors) != len(effects):
        raise DataError(
            f"vectors (n, d_model) and effects (n, d_sae) do not go together: {tuple(vectors.shape)}, {tuple(effects.shape)}"
        )
    if len(vectors) < 2:
        raise DataError(f"{len(vectors)} measured vectors are too few for an effect map; measure some hundred")
    for part in torch.split(effects, _CHUNK):
        if not bool(part.isfinite().all()):
            raise DataError("the effects hold NaN or infinite numbers; measure them again")
    return _units(vectors, vectors.shape[1])


def _units(vectors: Tensor, d_model: int) -> Tensor:
    if vectors.shape[-1] != d_model:
        raise DataError(f"vectors of {vectors.shape[-1]} dimensions do not fit an effect map of {d_model}")
    norms = vectors.double().norm(dim=-1, keepdim=True)
    if not bool(((norms > 0) & norms.isfinite()).all()):
        raise DataError("a steering vector must be finite and not all zero")
    unit: Tensor = (vectors.double() / norms).float()
    return unit
