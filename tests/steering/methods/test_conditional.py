"""Laws of conditions on requests: what the grid counts is what the engine does, for each request on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import D_MODEL

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.errors import DataError, ModelError, RecipeError, SaeError
from steersman.models.language_model import LanguageModel, chat
from steersman.models.residuals import ModelProfile, measure_profile
from steersman.sae.config import SaeConfig
from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import Above, AllOf, AnyOf, Not, Since, TokenIs, leaves
from steersman.steering.edits import Add
from steersman.steering.methods import conditional, conditional_features
from steersman.steering.methods.conditional import Fitted, Search, gate
from steersman.steering.methods.prompt_conditions import evaluate, extremes, holds
from steersman.steering.methods.prompt_sets import PromptSets, split
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe
from steersman.steering.target import Direction
from steersman.steering.vector import Vector

ONE = [f"zzzz how do I zzzz number {n} zzzz" for n in range(16)]
OTHER = [f"AAA, tell me of AAA {n} AAA" for n in range(16)]
PARTS = split(ONE, OTHER, seed=0)
SEARCH = Search(layers=(0, 1, 2))
PUSH = Recipe(
    name="push",
    edits=(
        Add(layer=2, vector=Vector(torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))), strength=20.0),
    ),
)


@pytest.fixture(scope="module")
def profile(tiny: LanguageModel) -> ModelProfile:
    return measure_profile(tiny)


@pytest.fixture(scope="module")
def fitted(tiny: LanguageModel, profile: ModelProfile) -> Fitted:
    return conditional.fit(tiny, ONE, OTHER, profile=profile, search=SEARCH)


def toy(layer: int = 1, architecture: Any = "relu") -> SparseAutoencoder:
    made = torch.Generator().manual_seed(0)
    config = SaeConfig(
        architecture=architecture, d_model=D_MODEL, d_sae=200, layer=layer, k=8 if architecture == "topk" else None
    )
    return SparseAutoencoder(
        config,
        W_enc=torch.randn(D_MODEL, 200, generator=made),
        b_enc=torch.randn(200, generator=made),
        W_dec=torch.randn(200, D_MODEL, generator=made),
        b_dec=torch.zeros(D_MODEL),
    )


def test_prompts_of_two_kinds_are_told_apart(fitted: Fitted) -> None:
    assert fitted.held_out.f1.mean == 1.0
    assert (fitted.held_out.recall.n, fitted.held_out.false_alarms.n) == (4, 4)
    assert fitted.held_out.f1_always == pytest.approx(2 / 3)
    assert len(fitted.grid) == 6
    assert all(each["f1"] <= fitted.cut.f1 for each in fitted.grid)  # type: ignore[operator]


@pytest.mark.parametrize(("read", "comparison"), [("turn_end", "above"), ("turn_end", "below"), ("any", "above")])
@pytest.mark.parametrize("measure", ["cosine", "projection"])
def test_what_the_grid_counts_is_what_the_engine_would_do(
    tiny: LanguageModel, profile: ModelProfile, read: Any, measure: Any, comparison: Any
) -> None:
    search = Search(layers=(1,), read=read, measure=measure, comparison=comparison, vector="pca")
    found = conditional.fit(tiny, ONE, OTHER, profile=profile, search=search)
    seen = evaluate(tiny, found.condition, PARTS.validation, profile=profile)
    assert seen.f1.mean == pytest.approx(found.cut.f1)
    assert found.comparison == comparison


def test_a_gated_recipe_changes_the_answers_of_triggers_and_no_others(
    tiny: LanguageModel, profile: ModelProfile, fitted: Fitted
) -> None:
    engine = Engine(tiny)
    prompts = PARTS.test.both
    fires = holds(tiny, fitted.condition, prompts, profile=profile)
    assert fires == PARTS.test.truth

    def answers(recipe: Recipe | None) -> list[tuple[int, ...]]:
        sampling = Sampling(max_tokens=6, ignore_eos=True)
        requests = [Request(prompt=chat(prompt), recipe=recipe, sampling=sampling) for prompt in prompts]
        return [result.token_ids for result in engine.generate(requests)]

    plain, always = answers(None), answers(PUSH)
    assert all(one != other for one, other in zip(plain, always, strict=True))
    gated = answers(gate(PUSH, fitted))
    assert [one != other for one, other in zip(plain, gated, strict=True)] == fires
    negated = answers(gate(PUSH, fitted, negate=True))
    assert [one == other for one, other in zip(plain, negated, strict=True)] == fires


def test_conditions_join_by_and_or_and_not(tiny: LanguageModel, profile: ModelProfile, fitted: Fitted) -> None:
    prompts = PARTS.test.both
    always, never = (Since(item=item) for item in (any_token(), Not(item=any_token())))
    truth = holds(tiny, fitted.condition, prompts, profile=profile)
    assert holds(tiny, AllOf(items=(fitted.condition, always)), prompts, profile=profile) == truth
    assert holds(tiny, AllOf(items=(fitted.condition, never)), prompts, profile=profile) == [False] * len(prompts)
    assert holds(tiny, AnyOf(items=(fitted.condition, always)), prompts, profile=profile) == [True] * len(prompts)
    assert holds(tiny, Not(item=fitted.condition), prompts, profile=profile) == [not each for each in truth]


def any_token() -> TokenIs:
    return TokenIs(token_ids=tuple(range(384)))


def test_gates_stack(fitted: Fitted, tmp_path: Path) -> None:
    once = gate(PUSH, fitted)
    assert once.edits[0].when == fitted.condition
    twice = gate(once, fitted, negate=True, join="or")
    assert twice.edits[0].when == AnyOf(items=(fitted.condition, Not(item=fitted.condition)))
    assert twice.edits[0].where.scope == "generated"
    noted: Any = twice.data["conditions"]
    assert [each["join"] for each in noted] == ["and", "or"]
    save_recipe(twice, tmp_path / "it.json")
    assert load_recipe(tmp_path / "it.json") == twice


def test_what_cannot_be_gated_is_refused(fitted: Fitted) -> None:
    early = Recipe(name="early", edits=(Add(layer=0, vector=Vector(torch.ones(D_MODEL))),))
    late = leaf_at(2, fitted)
    with pytest.raises(RecipeError, match="cannot wait for a condition at layer 2"):
        gate(early, late)
    with pytest.raises(RecipeError, match="by 'and' or 'or'"):
        gate(PUSH, fitted, join="xor")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="no edits"):
        gate(Recipe(name="end", edits=(), abort=any_token()), fitted)


def leaf_at(layer: int, fitted: Fitted) -> Fitted:
    import dataclasses

    leaf = Above(layer=layer, target=Direction(vector=Vector(torch.ones(D_MODEL))), threshold=0.0)
    return dataclasses.replace(fitted, condition=Since(item=leaf), layer=layer)


def test_prompts_and_layers_that_cannot_be_used_are_refused(tiny: LanguageModel, profile: ModelProfile) -> None:
    with pytest.raises(ModelError, match="layer 8 does not exist"):
        conditional.fit(tiny, ONE, OTHER, profile=profile, search=Search(layers=(8,)))
    with pytest.raises(DataError, match="another model"):
        conditional.fit(tiny, ONE, OTHER, profile=ModelProfile("x", profile.mean_norms), search=SEARCH)
    with pytest.raises(DataError, match="that should not; give at least 8"):
        conditional.fit(tiny, ONE, OTHER[:3], profile=profile, search=SEARCH)
    with pytest.raises(DataError, match="nothing to report on"):
        evaluate(tiny, any_token(), PromptSets(trigger=("a",), other=()), profile=profile)
    with pytest.raises(DataError, match="did you mean 'pca'"):
        Search(vector="pcaa")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="only 'above' can be asked"):
        Search(read="any", comparison="below")


def test_plain_text_models_read_any_token(profile: ModelProfile) -> None:
    from tests.tiny import tiny_model

    model = tiny_model("gpt2")
    model.tokenizer.chat_template = None
    norms = measure_profile(model)
    with pytest.raises(DataError, match="no chat template"):
        conditional.fit(model, ONE, OTHER, profile=norms, search=SEARCH)
    found = conditional.fit(model, ONE, OTHER, profile=norms, search=Search(layers=(1,), read="any"))
    assert isinstance(found.condition, Since)
    assert isinstance(found.condition.item, Above)


# --- SAE features as the condition


@pytest.mark.parametrize("read", ["turn_end", "any"])
def test_features_tell_prompts_apart_as_their_readings_say(
    tiny: LanguageModel, profile: ModelProfile, read: Any
) -> None:
    sae = toy()
    found = conditional_features.fit(
        tiny, sae, ONE, OTHER, profile=profile, search=Search(read=read), features=2, labels={5: "five"}
    )
    read_by = leaves(found.condition)
    assert 1 <= len(read_by) <= 2
    tokens: Any = found.data["tokens_read"]
    seen = extremes(tiny, PARTS.validation.both, {1: sae.encode}, tuple(tokens))[1][0]
    fired = torch.zeros(len(seen), dtype=torch.bool)
    for leaf in read_by:
        assert leaf.threshold >= 0
        fired |= seen[:, leaf.target.id] > leaf.threshold  # type: ignore[union-attr]
    assert holds(tiny, found.condition, PARTS.validation.both, profile=profile) == fired.tolist()
    assert found.cut.f1 == pytest.approx(evaluate(tiny, found.condition, PARTS.validation, profile=profile).f1.mean)
    json.dumps(found.facts)


def test_saes_that_do_not_fit_are_refused(tiny: LanguageModel, profile: ModelProfile) -> None:
    with pytest.raises(SaeError, match="topk"):
        conditional_features.fit(tiny, toy(architecture="topk"), ONE, OTHER, profile=profile)
    with pytest.raises(ModelError, match="layer 8"):
        conditional_features.fit(tiny, toy(8), ONE, OTHER, profile=profile)
    with pytest.raises(DataError, match="features must be 1 or more"):
        conditional_features.fit(tiny, toy(), ONE, OTHER, profile=profile, features=0)


@pytest.mark.model
def test_harmful_prompts_are_told_from_harmless_ones(bundled: LanguageModel, shared_data: Path) -> None:
    rows = json.loads((shared_data / "safety" / "cast_condition_harmful.json").read_text())
    train, test = ({key: [row[key] for row in rows[part]] for key in rows[part][0]} for part in ("train", "test"))
    profile = measure_profile(bundled)
    found = conditional.fit(
        bundled, train["harmful"][:120], train["harmless"][:120], profile=profile, search=Search(layers=(6, 9, 12))
    )
    assert found.held_out.f1.mean is not None
    assert found.held_out.f1.mean > 0.85
    # And on the data set's own test prompts, of which some stand in both lists.
    apart = PromptSets(trigger=tuple(test["harmful"][:60]), other=tuple(test["harmless"][:60]))
    assert (evaluate(bundled, found.condition, apart, profile=profile).f1.mean or 0.0) > 0.85
