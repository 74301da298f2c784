"""Laws of LAT: its component is that of repeng and of steering-vectors, and positives lie ahead along it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from steering_vectors import pca_aggregator, train_steering_vector
from tests.tiny import D_MODEL, N_LAYERS
from torch import Tensor

from steersman.errors import DataError
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.steering.contrast import Contrast, read_contrast
from steersman.steering.edits import Add
from steersman.steering.methods import lat
from steersman.steering.methods.lat import Variant
from steersman.steering.pairs import Pair

LAYERS = range(N_LAYERS)
WORDS = ("tea", "rain", "the sea", "old books", "you", "a long walk", "mathematics", "snow")
TEXTS = [(f"I like {what} so much!", f"Well, {what}: do I?") for what in WORDS]
PAIRS = [Pair(positive=positive, negative=negative) for positive, negative in TEXTS]
VARIANTS: tuple[Variant, ...] = ("pca_center", "pca_diff")


@pytest.fixture(scope="module")
def profile(tiny: LanguageModel) -> ModelProfile:
    return ModelProfile(tiny.ref.weights_hash, (2.0, 3.0, 5.0, 7.0))


@pytest.fixture(scope="module")
def repeng() -> Any:
    """`repeng.extract` as published. It names `np.float_` in an annotation, which NumPy 2 no longer has: lent on import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "float_", np.float64, raising=False)
        return importlib.import_module("repeng.extract")


def fitted(tiny: LanguageModel, profile: ModelProfile, variant: Variant) -> dict[int, Tensor]:
    recipe = lat.fit(tiny, PAIRS, profile=profile, layers=LAYERS, name="x", read="last", variant=variant)
    return {edit.layer: edit.vector.unit().tensor for edit in recipe.edits if isinstance(edit, Add)}


def contrast_of(positive: Tensor, negative: Tensor) -> Contrast:
    return Contrast({0: positive}, {0: negative}, {0: 1.0}, {})


def interleaved(contrast: Contrast, layer: int) -> Any:
    """Positive, negative, positive, negative, ...: as repeng keeps them."""
    return torch.stack([contrast.positive[layer], contrast.negative[layer]], 1).flatten(0, 1).numpy()


def as_repeng(repeng: Any, tiny: LanguageModel, variant: Variant, hiddens: dict[int, Any]) -> dict[int, Tensor]:
    """repeng's directions, computed from `hiddens` where those are given, else from what it reads itself."""
    entries = [repeng.DatasetEntry(*pair) for pair in TEXTS]
    directions = repeng.read_representations(
        tiny.hf,
        tiny.tokenizer,
        entries,
        hidden_layers=list(LAYERS),
        method=variant,
        transform_hiddens=lambda read: {**read, **{layer: hidden.copy() for layer, hidden in hiddens.items()}},
    )
    return {layer: torch.from_numpy(direction) for layer, direction in directions.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_as_repeng(tiny: LanguageModel, profile: ModelProfile, repeng: Any, variant: Variant) -> None:
    ours = fitted(tiny, profile, variant)
    contrast = read_contrast(tiny, PAIRS, profile=profile, layers=LAYERS, read="last")
    # repeng reads the last layer after the final norm; there it is handed the block's output.
    last = N_LAYERS - 1
    theirs = as_repeng(repeng, tiny, variant, {last: interleaved(contrast, last)})
    for layer in LAYERS:
        cosine = torch.dot(ours[layer], theirs[layer])
        votes = (contrast.differences(layer) @ ours[layer]).sign().sum()
        if votes <= 0:  # It lets pairs vote on the sign, we ask their mean.
            cosine = cosine.abs()
        assert cosine >= 0.999


def test_the_same_as_steering_vectors(tiny: LanguageModel, profile: ModelProfile) -> None:
    original = train_steering_vector(tiny.hf, tiny.tokenizer, TEXTS, aggregator=pca_aggregator())
    for layer, component in fitted(tiny, profile, "pca_center").items():
        assert torch.dot(component, original.layer_activations[layer]) >= 0.999


def test_shuffled_sides_as_in_the_paper_tend_to_pca_center() -> None:
    random = torch.Generator().manual_seed(0)
    negative = torch.randn(600, D_MODEL, generator=random)
    positive = negative + torch.randn(D_MODEL, generator=random) + 0.5 * torch.randn(600, D_MODEL, generator=random)
    signs = torch.randint(0, 2, (600, 1), generator=random) * 2 - 1
    shuffled = (positive - negative) * signs
    paper = torch.linalg.svd(shuffled - shuffled.mean(0), full_matrices=False).Vh[0]
    ours = lat.move(contrast_of(positive, negative), 0, "pca_center")
    assert torch.cosine_similarity(ours, paper, dim=0).abs() >= 0.999


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_move_takes_the_negative_mean_to_the_positive_along_the_component(variant: Variant) -> None:
    random = torch.Generator().manual_seed(1)
    contrast = contrast_of(*torch.randn(2, 9, D_MODEL, generator=random))
    move = lat.move(contrast, 0, variant)
    component = move / move.norm()
    moved = contrast.negative[0].mean(0) + move
    torch.testing.assert_close(moved @ component, contrast.positive[0].mean(0) @ component, rtol=1e-4, atol=1e-5)


def test_pca_diff_drops_the_mean_difference_and_pca_center_keeps_it() -> None:
    shared, varying = torch.eye(D_MODEL)[:2]
    amounts = torch.tensor([-2.0, -1.0, 1.5, 1.6])[:, None]
    contrast = contrast_of(10 * shared + amounts * varying, torch.zeros(4, D_MODEL))
    center, diff = (lat.move(contrast, 0, variant) for variant in VARIANTS)
    assert torch.cosine_similarity(center, shared, dim=0) > 0.999
    assert torch.cosine_similarity(diff, varying, dim=0) > 0.999


def test_the_mean_decides_the_sign_where_repeng_counts_votes(tiny: LanguageModel, repeng: Any) -> None:
    axis = torch.eye(D_MODEL)[3]
    # Two pairs far ahead, six a little behind.
    contrast = contrast_of(torch.tensor([9.0, 9.0, *[-1.0] * 6])[:, None] * axis, torch.zeros(8, D_MODEL))
    ours = lat.move(contrast, 0, "pca_center")
    theirs = as_repeng(repeng, tiny, "pca_center", {0: interleaved(contrast, 0)})[0]
    assert torch.cosine_similarity(ours, axis, dim=0) > 0.999
    assert torch.cosine_similarity(ours, theirs, dim=0) < -0.999


def test_the_variant_is_noted_and_an_unknown_one_refused(tiny: LanguageModel, profile: ModelProfile) -> None:
    recipe = lat.fit(tiny, PAIRS, profile=profile, layers=[1], name="x", variant="pca_diff")
    assert recipe.data["variant"] == "pca_diff"
    with pytest.raises(DataError, match="pca_centre"):
        lat.fit(tiny, PAIRS, profile=profile, layers=[1], name="x", variant="pca_centre")  # type: ignore[arg-type]
