"""Contrastive activation addition: the mean difference between positive and negative residuals. Needs pairs, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.steering.contrast import Read, read_contrast
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe


def fit(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    profile: ModelProfile,
    layers: Sequence[int],
    name: str,
    read: Read = "answer",
) -> Recipe:
    """Fit one `add` edit per layer, `(d_model,)`: the mean over pairs of (positive - negative).

    The recipe at 1 adds exactly that difference: the vector is stored as it is, the edit's strength is its length in mean
    residual norms. The same as `steering-vectors`' mean aggregator. With several layers each edit moves the stream by the
    whole difference there, and later layers inherit what earlier ones added: scale such a recipe down.

    Args:
        model: the model to read, and the only one that the recipe fits.
        pairs: what shows the behaviour, and what does not; repeated pairs count once.
        profile: the model's mean residual norms.
        layers: decoder blocks to fit at, counted from 0.
        name: of the recipe.
        read: which tokens are averaged. The paper reads the answer letter of multiple-choice pairs: `last`.

    Raises:
        DataError: pairs that cannot be read, or that do not differ.
        ModelError: a layer that the model does not have.
    """
    contrast = read_contrast(model, pairs, profile=profile, layers=layers, read=read)
    # Panickssery et al., arXiv:2312.06681, section 3; we average over the answer's tokens where they read one.
    edits = tuple(contrast.edit(layer, contrast.differences(layer).mean(0)) for layer in contrast.positive)
    return Recipe(name=name, edits=edits, model=model.ref, method="caa", data=contrast.data)
