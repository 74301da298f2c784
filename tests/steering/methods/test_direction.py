"""Laws of the direction: a difference of means, gone from the stream once ablated, chosen and reported on other prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import D_MODEL, N_LAYERS
from torch import Tensor

from steersman.errors import DataError, ModelError
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.steering.edits import Ablate, Add
from steersman.steering.methods import direction
from steersman.steering.methods.direction import Search
from steersman.steering.methods.prompt_sets import at_positions, split, steered, tokens_of
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe
from steersman.steering.target import Direction
from steersman.steering.vector import Vector

ONE = [f"zzzz how do I zzzz number {n}?" for n in range(12)]
OTHER = [f"AAA, tell me of AAA {n}." for n in range(12)]
# What this random model begins its answers to ONE with more often than those to OTHER, and what it does not.
OPENINGS = tuple("Xp#rJdyH<bOjK")
UNMOVED = tuple("abcdefghijklm")
ANY = Search(openings=OPENINGS, most_divergence=99.0)


@pytest.fixture(scope="module")
def profile(tiny: LanguageModel) -> ModelProfile:
    return ModelProfile(tiny.ref.weights_hash, (2.0, 3.0, 5.0, 7.0))


@pytest.fixture(scope="module")
def fitted(tiny: LanguageModel, profile: ModelProfile) -> Recipe:
    return direction.fit(tiny, ONE, OTHER, profile=profile, name="z", search=ANY)


def vector_of(recipe: Recipe) -> Tensor:
    edit = recipe.edits[0]
    if isinstance(edit, Add):
        return edit.vector.tensor
    assert isinstance(edit, Ablate)
    assert isinstance(edit.target, Direction)
    return edit.target.vector.tensor


def test_it_is_the_difference_of_means_of_the_training_prompts(
    tiny: LanguageModel, profile: ModelProfile, fitted: Recipe
) -> None:
    data: Any = fitted.data
    train = split(ONE, OTHER, seed=0).train
    ends = at_positions(tiny, tokens_of(tiny, train.both), [data["layer"]], [-1])[data["layer"], -1]
    n = len(train.trigger)
    torch.testing.assert_close(vector_of(fitted), ends[:n].mean(0) - ends[n:].mean(0), rtol=1e-3, atol=1e-4)


def test_once_ablated_nothing_of_it_is_left_at_any_layer(
    tiny: LanguageModel, profile: ModelProfile, fitted: Recipe
) -> None:
    unit, left = torch.nn.functional.normalize(vector_of(fitted), dim=0), list[float]()

    def watch(before: Tensor, after: Tensor | None) -> None:
        assert after is not None
        left.append(float((after[:, 1:] @ unit).abs().max()))
        assert torch.equal(after[:, 0], before[:, 0])

    watchers = dict.fromkeys(range(N_LAYERS), watch)
    steered(tiny, profile.mean_norms, fitted, tokens_of(tiny, ONE[:1]), lambda *_: None, watchers)
    assert len(left) == len(fitted.edits) == N_LAYERS
    assert max(left) < 1e-4


def test_the_best_of_the_validation_scores_is_taken(fitted: Recipe) -> None:
    data: Any = fitted.data
    passed = [each for each in data["candidates"] if each["induce"] > 0 and each["divergence"] <= 99.0]
    best = min(passed, key=lambda each: each["bypass"])
    assert (best["layer"], best["position"]) == (data["layer"], data["position"])
    assert {each["layer"] for each in data["candidates"]} == {0, 1, 2, 3}  # Four fifths of four, rounded up.


def test_separation_needs_no_openings(tiny: LanguageModel, profile: ModelProfile) -> None:
    search = Search(choose="separation", layers=(0, 2), positions=(-1, -2))
    recipe = direction.fit(tiny, ONE, OTHER, profile=profile, name="z", search=search)
    data: Any = recipe.data
    assert len(data["candidates"]) == 4
    best = max(data["candidates"], key=lambda each: each["separation"])
    assert (best["layer"], best["position"]) == (data["layer"], data["position"])
    assert all(each["bypass"] is None for each in data["candidates"])


def test_added_it_is_as_long_as_the_difference(tiny: LanguageModel, profile: ModelProfile) -> None:
    search = Search(choose="separation", layers=(2,), use="add")
    recipe = direction.fit(tiny, ONE, OTHER, profile=profile, name="z", search=search)
    (edit,) = recipe.edits
    assert isinstance(edit, Add)
    assert edit.strength * profile.mean_norms[2] == pytest.approx(edit.vector.norm, rel=1e-5)


def test_separation_is_cohens_d() -> None:
    one, other = torch.tensor([[1.0, 9.0], [3.0, 9.0]]), torch.tensor([[-2.0, 0.0], [0.0, 5.0], [2.0, 1.0]])
    # Along the first axis: means 2 and 0, variances 2 and 4, pooled (2 + 8) / 3.
    assert direction.separation(one, other, torch.tensor([7.0, 0.0])) == pytest.approx(2 / (10 / 3) ** 0.5)


def test_held_out_numbers_say_what_they_rest_on(fitted: Recipe, tmp_path: Path) -> None:
    data: Any = fitted.data
    assert data["test"]["ablated_minus_plain_on_trigger"]["n"] == 3
    assert data["test"]["added_minus_plain_on_other"]["total"] == 3
    assert data["test"]["ablated_minus_plain_on_trigger"]["high"] < 0
    assert data["test"]["added_minus_plain_on_other"]["low"] > 0
    save_recipe(fitted, tmp_path / "z.json")
    assert load_recipe(tmp_path / "z.json") == fitted


def test_directions_that_do_nothing_or_too_much_are_refused(tiny: LanguageModel, profile: ModelProfile) -> None:
    def fit(search: Search, norms: ModelProfile = profile) -> Recipe:
        return direction.fit(tiny, ONE, OTHER, profile=norms, name="z", search=search)

    with pytest.raises(DataError, match="changes other answers too much"):
        fit(Search(openings=OPENINGS, most_divergence=1e-9))
    with pytest.raises(DataError, match="none of the openings likelier"):
        fit(Search(openings=UNMOVED, most_divergence=99.0))
    with pytest.raises(DataError, match="another model"):
        fit(ANY, ModelProfile("other", profile.mean_norms))
    with pytest.raises(ModelError, match="layer 7 does not exist"):
        fit(Search(layers=(7,)))
    with pytest.raises(DataError, match="position -99 does not exist"):
        fit(Search(positions=(-99,)))
    # The template's first tokens are the same for all prompts, and nothing before them differs.
    same = [f"{'x' * 40}{n:02d}" for n in range(24)]
    with pytest.raises(DataError, match="do not differ where they are read"):
        direction.fit(tiny, same[::2], same[1::2], profile=profile, name="z", search=Search(positions=(-20,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choose": "openning"}, "openings"),
        ({"use": "abblate"}, "did you mean 'ablate'"),
        ({"positions": ()}, "no positions"),
        ({"openings": (" ",)}, "an opening is empty"),
        ({"most_divergence": 0.0}, "above 0"),
        ({"layers": ()}, "no layers"),
    ],
)
def test_a_search_refuses_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Search(**settings)


def test_ablating_at_chosen_layers_edits_those_alone() -> None:
    vector = Direction(vector=Vector(torch.ones(D_MODEL))).vector
    assert [edit.layer for edit in direction.ablating(vector, [1, 3])] == [1, 3]
