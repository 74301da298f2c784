"""Edits through a whole SAE: what the scores say is written, no more, in any batch, for every kind of SAE."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tests.recipes import D_SAE, N_LAYERS, SAES, WIDTH, narrow_sae
from tests.sae.toys import ARCHITECTURES, NORMALISATIONS
from tests.steering.oracle import reweighing_of
from torch import Tensor

from steersman.errors import RecipeError, SaeError
from steersman.models.residuals import ModelProfile
from steersman.sae.config import Architecture, Normalise
from steersman.sae.model import SparseAutoencoder
from steersman.steering import ops
from steersman.steering.edits import Ablate, Add, SaeEdit, Swap, Weight
from steersman.steering.export import raw_vectors
from steersman.steering.features import latent
from steersman.steering.plan import BatchPlan, TokenBatch
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

ONES = torch.ones(D_SAE)
SOME = torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0, 0.0, 3.0, 1.0, 0.1, 0.0, 1.5, -0.5])
EVERY = list(itertools.product(ARCHITECTURES, NORMALISATIONS))
every_sae = pytest.mark.parametrize(("architecture", "normalise"), EVERY)


def residuals(*shape: int, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, WIDTH, generator=made) + 0.3) * (torch.rand(*shape, 1, generator=made) * 4 + 0.1)


def change(
    sae: SparseAutoencoder, h: Tensor, scores: Tensor, kind: type[SaeEdit] = Weight, keep_error: bool = True
) -> Tensor:
    """What one edit of strength 1 writes to `h` (seq, d_model)."""
    (made,) = ops.reweigh(sae, h[None], scores[None], torch.ones(1, len(h)), swap=kind is Swap, keep_error=keep_error)
    return made


def edit(
    kind: type[Weight] | type[Swap], sae: SparseAutoencoder, scores: Tensor, keep_error: bool = True
) -> Weight | Swap:
    return kind(layer=sae.config.layer, sae=sae.ref("toy"), scores=Vector(scores), keep_error=keep_error)


# --- what is written


@every_sae
@pytest.mark.parametrize("kind", [Weight, Swap])
@pytest.mark.parametrize("keep_error", [True, False])
def test_the_change_is_that_of_a_slow_reading(
    architecture: Architecture, normalise: Normalise, kind: type[Weight] | type[Swap], keep_error: bool
) -> None:
    sae, h = narrow_sae(0, architecture, normalise), residuals(40)
    made = edit(kind, sae, SOME, keep_error)
    expected = torch.stack([reweighing_of(sae, made, token) for token in h])
    torch.testing.assert_close(change(sae, h, SOME, kind, keep_error).double(), expected, rtol=1e-4, atol=1e-5)


@every_sae
@pytest.mark.parametrize("kind", [Weight, Swap])
def test_scores_of_one_change_nothing_at_all(
    architecture: Architecture, normalise: Normalise, kind: type[SaeEdit]
) -> None:
    sae, h = narrow_sae(1, architecture, normalise), residuals(25)
    assert torch.equal(change(sae, h, ONES, kind), torch.zeros_like(h))


@every_sae
@pytest.mark.parametrize("kind", [Weight, Swap])
def test_without_the_error_scores_of_one_reconstruct(
    architecture: Architecture, normalise: Normalise, kind: type[SaeEdit]
) -> None:
    sae, h = narrow_sae(1, architecture, normalise), residuals(25)
    torch.testing.assert_close(h + change(sae, h, ONES, kind, keep_error=False), sae.reconstruct(h))


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "batchtopk"])
@pytest.mark.parametrize("kind", [Weight, Swap])
def test_scores_of_zero_switch_latents_off(
    architecture: Architecture, normalise: Normalise, kind: type[SaeEdit]
) -> None:
    sae, h = narrow_sae(2, architecture, normalise), residuals(25)
    scores = (torch.arange(D_SAE) % 3 != 0).float()
    acts = sae.encode(h)
    # Dense, from the outside: the reconstruction without those latents, less the one with them.
    expected = sae.decode(acts * scores, h) - sae.decode(acts, h)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(change(sae, h, scores, kind), expected, rtol=1e-4, atol=1e-5)


def test_switching_one_latent_off_is_its_ablation() -> None:
    sae, h = narrow_sae(1, "jumprelu"), residuals(1, 25)
    scores = ONES.clone()
    scores[4] = 0.0
    ablated = Recipe(name="a", edits=(Ablate(layer=1, target=latent(sae, 4)),))
    weighted = Recipe(name="b", edits=(edit(Weight, sae, scores),))
    one, other = (_steered(recipe, h, {sae.weights_hash: sae}) for recipe in (ablated, weighted))
    assert not torch.allclose(one, h)
    torch.testing.assert_close(one, other)


def test_under_topk_a_latent_that_is_switched_off_makes_room_for_the_next() -> None:
    sae, h = narrow_sae(0, "topk"), residuals(30)
    pre = sae.pre_activations(h)
    first = pre.argmax(-1)
    for token in range(len(h)):
        scores = ONES.clone()
        scores[first[token]] = 0.0
        order = pre[token].clone()
        order[first[token]] = -torch.inf
        chosen = order.topk(4).indices
        new = torch.zeros(D_SAE)
        new[chosen] = pre[token, chosen].relu()
        expected = sae.decode(new[None]) - sae.decode(sae.encode(h[token, None]))
        torch.testing.assert_close(change(sae, h[token, None], scores), expected, rtol=1e-4, atol=1e-5)


def test_swap_chooses_by_weighted_values_and_keeps_the_original_ones() -> None:
    # Two latents that read the two axes; k = 1.
    axes = torch.eye(2)
    config = dataclasses.replace(
        narrow_sae(0, "topk").config, d_model=2, d_sae=2, k=1, normalise="none", subtract_decoder_bias=False
    )
    sae = SparseAutoencoder(config, W_enc=axes, b_enc=torch.zeros(2), W_dec=axes, b_dec=torch.zeros(2))
    h, scores = torch.tensor([[3.0, 2.0]]), torch.tensor([0.5, 1.0])
    # Weighted: (1.5, 2); so the second fires instead of the first.
    assert change(sae, h, scores, Weight).tolist() == [[-3.0, 2.0]]
    assert change(sae, h, 2 * scores, Weight).tolist() == [[-3.0, 4.0]]
    assert change(sae, h, 2 * scores, Swap).tolist() == [[-3.0, 2.0]]
    # The error stays: what is not reconstructed is 2 before and 3 after.
    assert change(sae, h, scores, Swap, keep_error=False).tolist() == [[-3.0, 0.0]]


def test_a_negative_value_that_is_chosen_by_a_negative_score_writes_nothing() -> None:
    sae, h = narrow_sae(0, "relu"), residuals(30)
    off = sae.decode(torch.zeros(30, D_SAE)) - sae.decode(sae.encode(h))
    torch.testing.assert_close(change(sae, h, -ONES, Swap), off)
    assert not torch.allclose(change(sae, h, -ONES, Weight), off)


# --- strength, gains and rows


def _steered(recipe: Recipe, hidden: Tensor, saes: dict[str, SparseAutoencoder]) -> Tensor:
    """Residuals after the recipe at its layer; `hidden` is (1, seq, d_model)."""
    plan, seq = BatchPlan([recipe], [1.0] * N_LAYERS, torch.device("cpu"), saes), hidden.shape[1]
    batch = TokenBatch(
        token_ids=torch.zeros(1, seq, dtype=torch.long),
        positions=torch.arange(seq)[None],
        prompt_lengths=torch.tensor([[2]]),
        valid=torch.ones(1, seq, dtype=torch.bool),
        gains=torch.ones(1),
    )
    edited = plan.bind(batch, [{}]).hooks[recipe.edits[0].layer](hidden)
    assert edited is not None
    return edited


def test_strength_is_a_factor_on_the_change() -> None:
    sae, h = SAES[1], residuals(1, 9)
    full = Recipe(name="w", edits=(edit(Swap, sae, SOME, keep_error=False),))
    changes = [_steered(factor * full, h, {sae.weights_hash: sae}) - h for factor in (1.0, 0.5, -2.0)]
    torch.testing.assert_close(changes[1], 0.5 * changes[0])
    torch.testing.assert_close(changes[2], -2.0 * changes[0])
    assert not changes[0][:, 0].any()  # The first token is left alone.


def test_only_tokens_with_a_gain_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, h, seen = SAES[0], residuals(3, 5), []
    original = SparseAutoencoder.pre_activations

    def counted(self: SparseAutoencoder, x: Tensor) -> Tensor:
        seen.append(len(x))
        return original(self, x)

    monkeypatch.setattr(SparseAutoencoder, "pre_activations", counted)
    gain = torch.zeros(3, 5)
    scores = SOME.expand(3, -1)
    assert torch.equal(ops.reweigh(sae, h, scores, gain, swap=True, keep_error=True), torch.zeros_like(h))
    assert seen == []
    gain[0, 1], gain[2, 3:] = 1.0, 0.5
    made = ops.reweigh(sae, h, scores, gain, swap=True, keep_error=True)
    # One product for all rows, filled up to a whole four.
    assert seen == [4]
    assert sorted(made.any(-1).nonzero().tolist()) == [[0, 1], [2, 3], [2, 4]]


def test_what_is_not_a_number_stays_in_its_row() -> None:
    sae, h = SAES[1], residuals(2, 6)
    clean = ops.reweigh(sae, h, SOME.expand(2, -1), torch.ones(2, 6), swap=True, keep_error=True)
    h[0, 2] = torch.nan
    dirty = ops.reweigh(sae, h, SOME.expand(2, -1), torch.ones(2, 6), swap=True, keep_error=True)
    assert dirty[0, 2].isnan().all()
    assert torch.equal(dirty[1], clean[1])
    assert torch.equal(dirty[0, [0, 1, 3, 4, 5]], clean[0, [0, 1, 3, 4, 5]])


@every_sae
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_the_same_bit_for_bit_however_many_are_encoded_with_it(
    architecture: Architecture, normalise: Normalise, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sae, h = narrow_sae(0, architecture, normalise), residuals(37)
        together = change(sae, h, SOME, Swap, keep_error=False)
        for count in range(1, 14):
            for start in (0, 3, 37 - count):
                alone = change(sae, h[start : start + count], SOME, Swap, keep_error=False)
                assert torch.equal(alone, together[start : start + count]), (count, start)
    finally:
        torch.set_num_threads(before)


def test_long_texts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, h = SAES[2], residuals(50)
    whole = change(sae, h, SOME)
    monkeypatch.setattr(ops, "_CHUNK_ELEMENTS", 9 * D_SAE)
    assert torch.equal(change(sae, h, SOME), whole)


# --- recipes


def test_a_recipe_of_one_sae_is_of_that_sae() -> None:
    one, other = (edit(Weight, sae, SOME) for sae in SAES[:2])
    plain = Add(layer=0, vector=Vector([1.0] * WIDTH))
    assert Recipe(name="one", edits=(one, dataclasses.replace(one, strength=2.0))).sae == one.sae
    assert Recipe(name="both", edits=(one, other)).sae is None
    assert Recipe(name="mixed", edits=(one, plain)).sae is None
    assert Recipe(name="mixed", edits=(one, plain), sae=one.sae).sae == one.sae
    assert Recipe(name="both", edits=(one, other)).saes == (one.sae, other.sae)
    assert Recipe(name="mixed", edits=(one, plain)).widths == {WIDTH}
    assert Recipe(name="one", edits=(one,)).widths == frozenset()
    # The name is for people.
    renamed = dataclasses.replace(one.sae, id="renamed")
    assert Recipe(name="one", edits=(one,), sae=renamed).sae == renamed


def test_a_recipe_of_another_sae_than_its_edits_is_refused() -> None:
    one, other = (edit(Swap, sae, SOME) for sae in SAES[:2])
    with pytest.raises(RecipeError, match="leave the recipe's 'sae' out"):
        Recipe(name="torn", edits=(one,), sae=other.sae)
    with pytest.raises(RecipeError, match="leave the recipe's 'sae' out"):
        Recipe(name="torn", edits=(one, other), sae=other.sae)


def test_recipes_of_different_saes_add() -> None:
    one, other = (Recipe(name="r", edits=(edit(Swap, sae, SOME),)) for sae in SAES[:2])
    assert (one + other).sae is None
    assert (one + one).sae == one.sae
    assert (2.0 * one).sae == one.sae


def test_scores_for_another_number_of_latents_are_refused() -> None:
    wrong = edit(Weight, SAES[0], torch.ones(D_SAE + 1))
    with pytest.raises(RecipeError, match=f"{D_SAE + 1} scores.*{D_SAE} latents"):
        wrong.check_fits(SAES[0].config)
    edit(Weight, SAES[0], SOME).check_fits(SAES[0].config)


def test_a_plan_without_the_sae_says_which_it_needs() -> None:
    recipe = Recipe(name="r", edits=(edit(Weight, SAES[0], SOME),))
    with pytest.raises(SaeError, match=SAES[0].weights_hash[:8]):
        BatchPlan([recipe], [1.0] * N_LAYERS, torch.device("cpu"))


@pytest.mark.parametrize("kind", [Weight, Swap])
def test_edits_through_an_sae_cannot_be_exported(kind: type[Weight] | type[Swap]) -> None:
    recipe = Recipe(name="r", edits=(edit(kind, SAES[0], SOME),))
    with pytest.raises(RecipeError, match=rf"edits\.0 \({recipe.edits[0].kind} at layer 0\) cannot be exported"):
        raw_vectors(recipe, ModelProfile("hash", (1.0,) * N_LAYERS))
