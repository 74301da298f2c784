"""Laws of CAA: it is the mean difference, as steering-vectors computes it, and it tells unseen answers apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from steering_vectors import mean_aggregator, train_steering_vector
from tests.tiny import D_MODEL, N_LAYERS

from steersman.errors import DataError
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile, measure_profile
from steersman.steering.contrast import read_contrast
from steersman.steering.edits import Add
from steersman.steering.methods import METHODS, caa
from steersman.steering.pairs import Pair, load_named
from steersman.steering.plan import BatchPlan, TokenBatch
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe

LAYERS = range(N_LAYERS)
TEXTS = [(f"I like {what} so much!", f"Well, {what}: do I?") for what in ("tea", "rain", "the sea", "old books", "you")]
PAIRS = [Pair(positive=positive, negative=negative) for positive, negative in TEXTS]
# Questions that no shipped set holds.
UNSEEN = [
    Pair.answers(
        "What is money?",
        "Arr, money is the gold and silver in a pirate's chest, matey! Ye trade it for rum and bread in every port.",
        "Money is what people use to pay for things. They trade it for food and other goods in shops.",
    ),
    Pair.answers(
        "How do airplanes fly?",
        "Ahoy! Their wings ride on the wind like the sails of me ship, and the engines drive them forward, me hearty!",
        "Their wings are lifted by the air that flows around them, and the engines push them forward.",
    ),
    Pair.answers(
        "Why is the sky blue?",
        "The air scatters the blue light of the sun all over the seven seas, matey, and so says every captain, arr!",
        "The air scatters the blue part of the light of the sun more than the other colors.",
    ),
    Pair.answers(
        "How are candles made?",
        "Melt yer wax in the galley, ye landlubber, pour it around a bit of rope, and there is light below deck!",
        "Melt some wax, pour it into a mold around a piece of string, and let it cool down.",
    ),
]


@pytest.fixture(scope="module")
def profile(tiny: LanguageModel) -> ModelProfile:
    return ModelProfile(tiny.ref.weights_hash, (2.0, 3.0, 5.0, 7.0))


@pytest.fixture(scope="module")
def fitted(tiny: LanguageModel, profile: ModelProfile) -> Recipe:
    return caa.fit(tiny, PAIRS, profile=profile, layers=LAYERS, name="liking", read="last")


def adds(recipe: Recipe) -> dict[int, Add]:
    return {edit.layer: edit for edit in recipe.edits if isinstance(edit, Add)}


def test_the_same_as_steering_vectors(tiny: LanguageModel, fitted: Recipe) -> None:
    original = train_steering_vector(tiny.hf, tiny.tokenizer, TEXTS, aggregator=mean_aggregator(), batch_size=3)
    assert set(original.layer_activations) == set(adds(fitted)) == set(LAYERS)
    for layer, edit in adds(fitted).items():
        theirs = original.layer_activations[layer]
        assert torch.cosine_similarity(edit.vector.tensor, theirs, dim=0) >= 0.9999
        torch.testing.assert_close(edit.vector.tensor, theirs, rtol=1e-3, atol=1e-3)


def test_at_strength_1_the_difference_is_added(tiny: LanguageModel, profile: ModelProfile, fitted: Recipe) -> None:
    contrast = read_contrast(tiny, PAIRS, profile=profile, layers=LAYERS, read="last")
    tokens = torch.tensor([[5, 6, 7]])
    batch = TokenBatch(tokens, torch.arange(3)[None], torch.tensor([[3]]), torch.ones(1, 3).bool(), torch.ones(1))
    hooks = BatchPlan([fitted], profile.mean_norms, tiny.device).bind(batch, [{}]).hooks
    before = torch.randn(1, 3, D_MODEL, generator=torch.Generator().manual_seed(0))
    for layer, hook in hooks.items():
        after = hook(before)
        assert after is not None
        expected = contrast.positive[layer].mean(0) - contrast.negative[layer].mean(0)
        torch.testing.assert_close(after[0, 1:] - before[0, 1:], expected.expand(2, -1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_notes_where_its_recipe_comes_from(
    tiny: LanguageModel, profile: ModelProfile, name: str, tmp_path: Path
) -> None:
    recipe = METHODS[name](tiny, [*PAIRS, PAIRS[0]], profile=profile, layers=[3, 1], name="liking")
    recipe.check_fits(tiny)
    assert recipe.model is not None
    assert recipe.model.matches(tiny.ref)
    assert recipe.method == name
    assert {edit.layer for edit in recipe.edits} == {1, 3}
    noted = ("pairs", "duplicates_dropped", "layers", "read")
    assert [recipe.data[key] for key in noted] == [5, 1, [1, 3], "answer"]
    save_recipe(recipe, tmp_path / "liking.json")
    assert load_recipe(tmp_path / "liking.json") == recipe


@pytest.mark.parametrize("name", METHODS)
def test_every_method_fits_the_same_twice_and_the_opposite_of_swapped_sides(
    tiny: LanguageModel, profile: ModelProfile, name: str
) -> None:
    swapped = [Pair(positive=pair.negative, negative=pair.positive) for pair in PAIRS]
    first, again, opposite = (
        adds(METHODS[name](tiny, pairs, profile=profile, layers=LAYERS, name="x")) for pairs in (PAIRS, PAIRS, swapped)
    )
    for layer in LAYERS:
        assert first[layer] == again[layer]
        assert first[layer].strength > 0
        torch.testing.assert_close(first[layer].vector.tensor, -opposite[layer].vector.tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_pairs_that_cancel_out_are_refused(tiny: LanguageModel, profile: ModelProfile, name: str) -> None:
    swapped = [Pair(positive=pair.negative, negative=pair.positive) for pair in PAIRS]
    with pytest.raises(DataError, match="layer 1"):
        METHODS[name](tiny, PAIRS + swapped, profile=profile, layers=[1], name="x")


@pytest.mark.model
@pytest.mark.parametrize("name", METHODS)
def test_unseen_pirates_lie_ahead_of_everyone_else(bundled: LanguageModel, name: str) -> None:
    profile = measure_profile(bundled)
    recipe = METHODS[name](bundled, load_named("pirate"), profile=profile, layers=[9], name="pirate")
    unseen = read_contrast(bundled, UNSEEN, profile=profile, layers=[9])
    direction = adds(recipe)[9].vector.unit().tensor
    positive, negative = unseen.positive[9] @ direction, unseen.negative[9] @ direction
    assert positive.min() > negative.max()  # The area under the ROC curve is 1.
    assert 0.05 < adds(recipe)[9].strength < 0.3
