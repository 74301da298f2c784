"""Linear artificial tomography: the main axis along which pairs differ. Needs pairs, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.steering.contrast import Contrast, Read, read_contrast
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe

Variant = Literal["pca_center", "pca_diff"]
"""`pca_center`: PCA of both sides about each pair's middle, so the mean difference counts; `pca_diff`: PCA of the differences
about their mean, so only what varies between pairs counts. The names are those of `repeng`."""


def fit(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    profile: ModelProfile,
    layers: Sequence[int],
    name: str,
    read: Read = "answer",
    variant: Variant = "pca_center",
) -> Recipe:
    """Fit one `add` edit per layer, `(d_model,)`: the first principal component of the pairs' differences.

    The recipe at 1 adds the component times the mean projected difference, which moves the mean negative to the mean
    positive along it. Fitting is exact and uses no chance.

    Against the originals, on the same residuals (cosine 1):

    - The paper shuffles the sides of each pair and centres the differences. A random sign on each makes their mean vanish,
      so `pca_center` is what it tends to, without the chance. It equals `steering-vectors`' PCA aggregator.
    - `repeng`'s default is `pca_diff`, which drops the mean difference; ours is `pca_center`. It reads `last`.
    - We point the component so that positives project higher *on average*, since that average is the strength; `repeng`
      lets each pair vote. They differ only where a few pairs disagree strongly with the rest.
    - `repeng` reads the last layer after the model's final norm; layer i here is always the output of block i.

    Args:
        model: the model to read, and the only one that the recipe fits.
        pairs: what shows the behaviour, and what does not; repeated pairs count once.
        profile: the model's mean residual norms.
        layers: decoder blocks to fit at, counted from 0.
        name: of the recipe.
        read: which tokens are averaged before the PCA.
        variant: what the PCA is taken of.

    Raises:
        DataError: pairs that cannot be read, or that do not differ along the component.
        ModelError: a layer that the model does not have.
    """
    if variant not in get_args(Variant):
        raise DataError(f"unknown variant {variant!r}; use one of {', '.join(get_args(Variant))}")
    contrast = read_contrast(model, pairs, profile=profile, layers=layers, read=read)
    edits = tuple(contrast.edit(layer, move(contrast, layer, variant)) for layer in contrast.positive)
    return Recipe(name=name, edits=edits, model=model.ref, method="lat", data={**contrast.data, "variant": variant})


def move(contrast: Contrast, layer: int, variant: Variant) -> Float[Tensor, " d_model"]:
    """The component times the mean difference along it: its sign cancels, so positives always lie ahead."""
    differences = contrast.differences(layer)
    # Zou et al., arXiv:2310.01405, section 3.1. About each pair's middle the two sides are plus and minus half the
    # difference: their mean is zero, and their PCA is that of the differences without centring.
    centred = differences if variant == "pca_center" else differences - differences.mean(0)
    component: Tensor = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    return component * (differences @ component).mean()
