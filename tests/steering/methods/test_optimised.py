"""Laws of the optimised vector: it learns what pairs prefer, stays within its norm, and is the same for the same seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import D_MODEL

from steersman.errors import DataError, ModelError
from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.models.upper import UpperModel
from steersman.steering.contrast import locate
from steersman.steering.edits import Add
from steersman.steering.methods import optimised
from steersman.steering.methods.optimised import Training
from steersman.steering.methods.preferences import PREFERENCES
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe

WORDS = ("tea", "rain", "the sea", "old books", "snow", "a long walk", "mathematics", "bread")
PAIRS = [Pair.answers(f"Do you like {what}?", f"AAAA, {what} AAAA!", f"zzz {what} zz.") for what in WORDS]
QUICK = Training(steps=12, validate_every=3, max_norm=0.5, step_length=0.1)


@pytest.fixture(scope="module")
def profile(tiny: LanguageModel) -> ModelProfile:
    return ModelProfile(tiny.ref.weights_hash, (2.0, 3.0, 5.0, 7.0))


@pytest.fixture(scope="module")
def fitted(tiny: LanguageModel, profile: ModelProfile) -> Recipe:
    return optimised.fit(tiny, PAIRS, profile=profile, layers=[1], name="AAAA", training=QUICK)


def only(recipe: Recipe) -> Add:
    (edit,) = recipe.edits
    assert isinstance(edit, Add)
    return edit


def histories(recipe: Recipe) -> dict[str, Any]:
    found: Any = recipe.data["history"]
    return dict(found)


def test_sums_are_those_of_the_whole_model_in_the_order_of_the_pairs(tiny: LanguageModel) -> None:
    readings = [optimised._readings(tiny, pair, 1) for pair in PAIRS]
    added = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    found = optimised._Answers(UpperModel(tiny, 1), readings).predict(lambda _: added)

    def slow(side: Any) -> float:
        span, ids = locate(tiny, side, "answer"), torch.tensor([locate(tiny, side, "answer").ids])
        with editing(tiny.blocks, {1: lambda hidden: torch.cat([hidden[:, :1], hidden[:, 1:] + added], 1)}):
            logprobs = tiny.hf(input_ids=ids).logits[0].log_softmax(-1)
        return sum(float(logprobs[at - 1, span.ids[at]]) for at in range(span.start, span.stop))

    expected = torch.tensor([[slow(pair.positive), slow(pair.negative)] for pair in PAIRS])
    torch.testing.assert_close(torch.stack([found.positive, found.negative], 1), expected, rtol=1e-3, atol=1e-2)
    lengths = [[len(side.ids) - side.start for side in reading] for reading in readings]
    assert torch.stack([found.positive_tokens, found.negative_tokens], 1).tolist() == lengths


@pytest.mark.parametrize("preference", PREFERENCES)
def test_validation_pairs_turn_to_the_positive_answer(
    tiny: LanguageModel, profile: ModelProfile, preference: str
) -> None:
    training = dataclasses.replace(QUICK, preference=preference)
    recipe = optimised.fit(tiny, PAIRS, profile=profile, layers=[1], name="x", training=training)
    seen = histories(recipe)["1"]
    best = min(seen, key=lambda entry: entry["loss"])
    assert best["step"] > 0
    assert best["turned"] == 1.0
    assert best["loss"] < seen[0]["loss"]


def test_the_norm_is_held_in(tiny: LanguageModel, profile: ModelProfile) -> None:
    training = dataclasses.replace(QUICK, max_norm=0.05, step_length=0.5)
    recipe = optimised.fit(tiny, PAIRS, profile=profile, layers=[1], name="x", training=training)
    assert all(entry["norm"] <= 0.05 + 1e-6 for entry in histories(recipe)["1"])
    assert only(recipe).strength <= 0.05 + 1e-6


def test_at_strength_1_the_vector_is_added_as_it_was_trained(fitted: Recipe, profile: ModelProfile) -> None:
    edit = only(fitted)
    assert edit.unit == "residual_norm"
    assert edit.strength * profile.mean_norms[1] == pytest.approx(edit.vector.norm, rel=1e-5)


def test_the_same_seed_trains_the_same_vector_and_another_another(
    tiny: LanguageModel, profile: ModelProfile, fitted: Recipe
) -> None:
    again, other = (
        optimised.fit(
            tiny, PAIRS, profile=profile, layers=[1], name="AAAA", training=dataclasses.replace(QUICK, seed=seed)
        )
        for seed in (0, 1)
    )
    assert again == fitted
    assert only(other).vector != only(fitted).vector


def test_of_several_layers_the_best_on_validation_is_kept(tiny: LanguageModel, profile: ModelProfile) -> None:
    recipe = optimised.fit(tiny, PAIRS, profile=profile, layers=[0, 1, 2], name="x", training=QUICK)
    losses = {int(layer): min(each["loss"] for each in seen) for layer, seen in histories(recipe).items()}
    assert set(losses) == {0, 1, 2}
    assert only(recipe).layer == min(losses, key=lambda layer: losses[layer])


def test_training_ends_when_validation_gets_no_better(tiny: LanguageModel, profile: ModelProfile) -> None:
    # Once the norm has reached its limit there is nothing left to gain.
    training = Training(steps=400, validate_every=1, patience=2, max_norm=0.02, step_length=0.5)
    recipe = optimised.fit(tiny, PAIRS, profile=profile, layers=[1], name="x", training=training)
    seen = histories(recipe)["1"]
    assert len(seen) < 200
    assert min(range(len(seen)), key=lambda place: seen[place]["loss"]) == len(seen) - 3


def test_the_recipe_says_where_it_comes_from(tiny: LanguageModel, fitted: Recipe, tmp_path: Path) -> None:
    fitted.check_fits(tiny)
    assert (fitted.method, fitted.data["pairs"], fitted.data["validation_pairs"]) == ("optimised", 8, 2)
    save_recipe(fitted, tmp_path / "it.json")
    assert load_recipe(tmp_path / "it.json") == fitted


def test_the_model_is_left_alone(tiny: LanguageModel, profile: ModelProfile) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    before = tiny.hf(input_ids=ids).logits
    optimised.fit(tiny, PAIRS, profile=profile, layers=[1], name="x", training=QUICK)
    assert torch.equal(tiny.hf(input_ids=ids).logits, before)
    assert all(parameter.grad is None for parameter in tiny.hf.parameters())


def test_unusable_pairs_and_layers_are_refused(tiny: LanguageModel, profile: ModelProfile) -> None:
    def fit(pairs: list[Pair], layers: list[int], norms: ModelProfile = profile) -> Recipe:
        return optimised.fit(tiny, pairs, profile=norms, layers=layers, name="x", training=QUICK)

    with pytest.raises(DataError, match=r"3 different pairs; give at least 4"):
        fit([*PAIRS[:3], PAIRS[0]], [1])
    with pytest.raises(ModelError, match="layer 9 does not exist"):
        fit(PAIRS, [9])
    with pytest.raises(DataError, match="name at least one"):
        fit(PAIRS, [])
    with pytest.raises(DataError, match="another model"):
        fit(PAIRS, [1], ModelProfile("other", profile.mean_norms))
    with pytest.raises(DataError, match=r"pair 2: .*tokens are more than"):
        fit([PAIRS[0], Pair.answers("Why?", "a" * 600, "b"), *PAIRS[2:]], [1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preference": "bipos"}, "did you mean 'bipo'"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"max_norm": 0.0}, "max_norm must be above 0"),
        ({"validation_share": 1.0}, "below 1"),
    ],
)
def test_training_refuses_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Training(**settings)
