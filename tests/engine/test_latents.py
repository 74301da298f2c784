"""Features in the engine: edits and conditions on latents, edits through a whole SAE, and SAEs that do not fit."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.rig import NORMS, ask, bits, make_engine, model_of, prompts, push, without_cache
from tests.tiny import CONTEXT, D_MODEL
from torch import Tensor

from steersman.engine.engine import Engine
from steersman.engine.request import Request
from steersman.errors import RecipeError, SaeError
from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel, ModelRef
from steersman.models.residuals import ModelProfile, read_residuals
from steersman.sae.config import Architecture, SaeConfig, SaeRef
from steersman.sae.file import save_sae
from steersman.sae.library import place_for
from steersman.sae.model import SparseAutoencoder
from steersman.steering.condition import Above, AllOf, AnyOf, Condition, Not, Since
from steersman.steering.edits import Ablate, Clamp, Edit, Scale, Swap, Weight
from steersman.steering.features import add_features, latent
from steersman.steering.plan import BatchPlan, TokenBatch
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

LAYER, D_SAE, K = 1, 64, 8


def toy(architecture: Architecture = "jumprelu", layer: int = LAYER, seed: int = 0, **facts: Any) -> SparseAutoencoder:
    """A random SAE for the tiny models, about half of whose latents would fire under ReLU."""
    made = torch.Generator().manual_seed(seed)
    d_model = facts.get("d_model", D_MODEL)
    weights = {
        "W_enc": torch.randn(d_model, D_SAE, generator=made) * 0.2,
        "b_enc": torch.randn(D_SAE, generator=made) * 0.1,
        "W_dec": torch.randn(D_SAE, d_model, generator=made) * 0.2,
        "b_dec": torch.randn(d_model, generator=made) * 0.1,
    }
    if architecture in {"jumprelu", "batchtopk"}:
        weights["threshold"] = torch.rand(D_SAE, generator=made)
    fields = {"d_model": D_MODEL, "d_sae": D_SAE, "layer": layer, "k": K if "topk" in architecture else None, **facts}
    return SparseAutoencoder(SaeConfig(architecture=architecture, **fields), **weights)


SAE, TOPK = toy(), toy("topk", seed=1, normalise="layer_norm")
HELD = {sae.weights_hash: sae for sae in (SAE, TOPK)}
SCORES = Vector(torch.rand(D_SAE, generator=torch.Generator().manual_seed(7)) * 3 - 0.5)
HALF = Vector((torch.arange(D_SAE) % 2).float())


def find(ref: SaeRef) -> SparseAutoencoder:
    return HELD[ref.weights_hash]


def engine_with(resolve: Callable[[SaeRef], SparseAutoencoder] | None = find, **rest: Any) -> Engine:
    model = model_of("llama")
    return Engine(model, profile=ModelProfile(model.ref.weights_hash, NORMS), saes=resolve, **rest)


def whole(kind: type[Weight] | type[Swap], sae: SparseAutoencoder = SAE, scores: Vector = SCORES, **rest: Any) -> Edit:
    return kind(layer=sae.config.layer, sae=sae.ref("toy"), scores=scores, **rest)


def recipe(*edits: Edit, **rest: Any) -> Recipe:
    return Recipe(name="latents", edits=edits, **rest)


def every_sort() -> list[Recipe | None]:
    """All edits on features, with and without conditions, through two SAEs."""
    fired = Above(layer=LAYER, target=latent(SAE, 5), threshold=0.3)
    return [
        None,
        recipe(Clamp(layer=LAYER, target=latent(SAE, 3), value=9.0)),
        recipe(Scale(layer=LAYER, target=latent(SAE, 4), factor=8.0), Ablate(layer=LAYER, target=latent(SAE, 5))),
        recipe(whole(Weight)),
        recipe(whole(Swap, keep_error=False)),
        recipe(whole(Weight, TOPK), gated(fired)),
        recipe(whole(Swap, TOPK, HALF, strength=0.7, keep_error=False)),
        recipe(whole(Weight, when=fired), whole(Swap, TOPK, when=Not(item=fired))),
        recipe(add_features(SAE, {1: 1.0, 9: -2.0}, strength=0.6)),
        push(3),
    ]


def gated(condition: Condition) -> Edit:
    return Clamp(layer=LAYER, target=latent(SAE, 7), value=6.0, when=condition)


# --- one batch


def test_edits_on_features_in_one_batch_give_what_each_gives_alone() -> None:
    found = every_sort()
    requests = [ask(text, r, tokens=10) for text, r in zip(prompts(len(found)), found, strict=True)]
    engine = engine_with()
    together = engine.generate(requests)
    plain = engine.generate([dataclasses.replace(request, recipe=None) for request in requests])
    for request, result, unsteered in zip(requests, together, plain, strict=True):
        alone = engine.generate([request])[0]
        assert result.token_ids == alone.token_ids
        assert [item.logprob for item in result.logprobs] == pytest.approx(
            [i.logprob for i in alone.logprobs], abs=1e-4
        )
        if request.recipe is not None:
            assert bits(result) != bits(unsteered), request.recipe
            tokens, logprobs, _ = without_cache(model_of("llama"), request, HELD)
            assert list(result.token_ids) == tokens
            assert [item.logprob for item in result.logprobs] == pytest.approx(logprobs, abs=1e-3)


def test_scores_of_one_and_a_strength_of_zero_are_the_plain_model() -> None:
    plain = ask("once upon a time", tokens=12)
    ones = Vector(torch.ones(D_SAE))
    silent = [recipe(whole(Weight, scores=ones)), recipe(whole(Swap, TOPK, ones)), 0.0 * recipe(whole(Weight))]
    engine = engine_with()
    expected = bits(engine.generate([plain])[0])
    for none in silent:
        assert bits(engine.generate([dataclasses.replace(plain, recipe=none)])[0]) == expected
    steered = dataclasses.replace(plain, recipe=recipe(whole(Swap)), strength=0.0)
    assert bits(engine.generate([steered])[0]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_an_edit_through_an_sae_does_to_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    # At the block itself, where no attention rounds: bit for bit, in any company.
    hidden = torch.randn(9, 7, D_MODEL, generator=torch.Generator().manual_seed(0)).to(dtype)
    sorts = [whole(Weight), whole(Swap, keep_error=False), whole(Swap, TOPK)] * 3

    def through(rows: list[int]) -> Tensor:
        plan = BatchPlan([recipe(sorts[row]) for row in rows], NORMS, torch.device("cpu"), HELD)
        batch = TokenBatch(
            token_ids=torch.zeros(len(rows), 7, dtype=torch.long),
            positions=torch.arange(7).expand(len(rows), 7),
            prompt_lengths=torch.full((len(rows), 1), 3),
            valid=torch.ones(len(rows), 7, dtype=torch.bool),
            gains=torch.ones(len(rows)),
        )
        edited = plan.bind(batch, [{} for _ in rows]).hooks[LAYER](hidden[rows])
        assert edited is not None
        return edited

    together = through(list(range(9)))
    for rows in ([0], [4], [2, 5], [1, 3, 8], [8, 7, 6, 5, 4, 3, 2, 1, 0]):
        assert torch.equal(through(rows), together[rows])


# --- conditions


@pytest.mark.parametrize("feature", [2, 11, 30])
def test_conditions_on_features_hold_at_the_tokens_where_the_sae_says_so(feature: int) -> None:
    model, text = model_of("llama"), "the quick brown fox jumps over a lazy dog"
    ids = model.encode(text)
    acts = SAE.encode(read_residuals(model, [ids], [LAYER], skip_first=False)[0][LAYER])
    x, y = acts[:, feature], acts[:, feature + 1]
    # Between two readings, so that the last bit does not decide.
    limit = _between(x)
    over_x = Above(layer=LAYER, target=latent(SAE, feature), threshold=limit)
    over_y = Above(layer=LAYER, target=latent(SAE, feature + 1), threshold=_between(y))
    one, other = x > limit, y > _between(y)
    one[0] = other[0] = False
    later = torch.arange(len(ids)) > 0
    cases: list[tuple[Condition, Tensor]] = [
        (over_x, one),
        (Not(item=over_x), ~one),
        (AllOf(items=(over_x, over_y)), one & other),
        (AnyOf(items=(over_x, Not(item=over_y))), one | ~other),
        (Since(item=over_x), one.cumsum(0) > 0),
    ]
    for condition, expected in cases:
        steered = recipe(Clamp(layer=LAYER, target=latent(SAE, 40), value=50.0, when=condition))
        assert touched(model, steered, ids) == (expected & later).nonzero().flatten().tolist(), condition


def touched(model: LanguageModel, steered: Recipe, ids: list[int]) -> list[int]:
    """Tokens whose residual the recipe changes at its layer, read chunk by chunk as the engine does."""
    batch = TokenBatch(
        token_ids=torch.tensor([ids]),
        positions=torch.arange(len(ids))[None],
        prompt_lengths=torch.tensor([[len(ids)]]),
        valid=torch.ones(1, len(ids), dtype=torch.bool),
        gains=torch.ones(1),
    )
    hook = BatchPlan([steered], NORMS, torch.device("cpu")).bind(batch, [{}]).hooks[LAYER]
    found: list[int] = []

    def compare(hidden: Tensor) -> Tensor | None:
        edited = hook(hidden)
        assert edited is not None
        found.extend((edited != hidden).any(-1)[0].nonzero().flatten().tolist())
        return edited

    with torch.no_grad(), editing(model.blocks, {LAYER: compare}):
        model.hf(input_ids=batch.token_ids)
    return found


def _between(readings: Tensor) -> float:
    ordered = readings[1:].sort().values
    middle = len(ordered) // 2
    gaps = ordered[1:] - ordered[:-1]
    widest = middle // 2 + int(gaps[middle // 2 : -2].argmax())
    return float(ordered[widest] + ordered[widest + 1]) / 2


def test_an_answer_ends_where_a_feature_fires() -> None:
    model, prompt = model_of("llama"), "once upon a time"
    plain = engine_with().generate([ask(prompt, tokens=30)])[0]
    ids = [*model.encode(prompt), *plain.token_ids]
    acts = SAE.encode(read_residuals(model, [ids], [LAYER], skip_first=False)[0][LAYER])
    start = len(model.encode(prompt))
    chosen = None
    for feature in range(D_SAE):
        before, after = acts[1:start, feature].max(), acts[start:-1, feature]
        if after.max() > before + 0.2:
            chosen = feature, float(before + after.max()) / 2, int((after > (before + after.max()) / 2).nonzero()[0])
            break
    assert chosen is not None
    feature, limit, place = chosen
    abort = recipe(abort=Above(layer=LAYER, target=latent(SAE, feature), threshold=limit))
    other = ask(prompt, recipe(whole(Weight)), tokens=30)
    result, beside = engine_with().generate([ask(prompt, abort, tokens=30), other])
    # The token at which it fires is read, and nothing is written after it.
    assert (result.token_ids, result.finish_reason) == (plain.token_ids[: place + 1], "abort")
    assert beside.token_ids == engine_with().generate([other])[0].token_ids


# --- which SAE


def refused(engine: Engine, request: Request, error: type[Exception], message: str) -> None:
    """By every way in, before anything runs; the engine goes on."""
    for way in (
        lambda: engine.generate([ask("well"), request]),
        lambda: engine.submit(request),
        lambda: engine.stream(request),
    ):
        with pytest.raises(error, match=message):
            way()
    assert engine._waiting == type(engine._waiting)()
    assert len(engine.generate([ask("well")])) == 1


def test_an_sae_that_is_not_there_is_refused(tmp_path: Path) -> None:
    engine = engine_with(None, cache=tmp_path)
    refused(engine, ask("x", recipe(whole(Weight))), SaeError, "'toy'.*not in the library")


def test_an_sae_in_the_library_is_found_whatever_it_is_called(tmp_path: Path) -> None:
    save_sae(SAE, place_for("my-sae", tmp_path))
    save_sae(TOPK, place_for("other", tmp_path))
    request = ask("once upon a time", recipe(whole(Weight), whole(Swap, TOPK)))
    found = engine_with(None, cache=tmp_path).generate([request])[0]
    assert found == engine_with().generate([request])[0]


def test_an_sae_of_another_model_or_layer_is_refused() -> None:
    other = ModelRef(id="other-model", config_hash="c", weights_hash="w")
    stranger, late, wide = SAE.for_model(other), toy(layer=2), toy(d_model=D_MODEL + 1)
    request = ask("x", recipe(whole(Weight)))
    refused(engine_with(lambda _: stranger), request, SaeError, "other-model")
    # The same weights, said to read another layer.
    refused(engine_with(lambda _: late), request, SaeError, "layer 2")
    narrow = SaeRef(id="wide", layer=LAYER, weights_hash=wide.weights_hash)
    edit = Weight(layer=LAYER, sae=narrow, scores=SCORES)
    refused(engine_with(lambda _: wide), ask("x", recipe(edit)), SaeError, f"{D_MODEL + 1} dimensions")
    own = SAE.for_model(model_of("llama").ref)
    assert engine_with(lambda _: own).generate([request]) == engine_with().generate([request])


def test_another_sae_than_the_recipe_names_is_refused() -> None:
    refused(engine_with(lambda _: TOPK), ask("x", recipe(whole(Weight))), SaeError, SAE.weights_hash[:8])


def test_scores_that_do_not_fit_are_refused() -> None:
    short = recipe(whole(Swap, scores=Vector([1.0] * (D_SAE - 1))))
    refused(engine_with(), ask("x", short), RecipeError, f"{D_SAE - 1} scores")


def test_a_prompt_that_does_not_fit_is_refused_before_an_sae_is_looked_for() -> None:
    looked: list[SaeRef] = []
    engine = engine_with(lambda ref: looked.append(ref) or find(ref))  # type: ignore[func-returns-value]
    refused(engine, ask("x" * CONTEXT, recipe(whole(Weight))), Exception, "shorten the prompt")
    assert looked == []


def test_an_sae_is_found_once_and_again_after_the_engine_was_closed() -> None:
    looked: list[SaeRef] = []
    engine = engine_with(lambda ref: looked.append(ref) or find(ref))  # type: ignore[func-returns-value]
    requests = [ask(text, recipe(whole(Weight, strength=0.5 + index))) for index, text in enumerate(prompts(4))]
    first = engine.generate(requests)
    assert engine.generate(requests) == first
    assert len(looked) == 1
    engine.close()
    assert engine.generate(requests) == first
    assert len(looked) == 2


def test_many_threads_wait_for_one_sae() -> None:
    looked: list[SaeRef] = []

    def slowly(ref: SaeRef) -> SparseAutoencoder:
        looked.append(ref)
        threading.Event().wait(0.05)
        return find(ref)

    engine, results = engine_with(slowly), {}
    requests = [ask(text, recipe(whole(Weight))) for text in prompts(4)]
    threads = [
        threading.Thread(
            target=lambda i=index: results.update({i: engine.generate([requests[i]])[0].token_ids}), daemon=True
        )
        for index in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(looked) == 1
    assert results == {i: engine.generate([request])[0].token_ids for i, request in enumerate(requests)}


def test_recipes_on_latents_run_without_any_sae(tmp_path: Path) -> None:
    steered = recipe(Clamp(layer=LAYER, target=latent(SAE, 3), value=9.0), sae=SAE.ref("gone"))
    request = ask("once upon a time", steered)
    assert engine_with(None, cache=tmp_path).generate([request]) == make_engine(model_of("llama")).generate([request])
