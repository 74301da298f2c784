"""What SAEs compute: every fast path equals the slow one, and latents taken out of an SAE do what they did in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sae.toys import (
    ARCHITECTURES,
    D_MODEL,
    D_SAE,
    FIXED,
    NORMALISATIONS,
    PER_TOKEN,
    K,
    residuals,
    slow,
    toy_config,
    toy_sae,
    toy_weights,
)
from torch import Tensor

import steersman.sae.model as model_module
from steersman.errors import SaeError
from steersman.models.language_model import ModelRef
from steersman.sae.config import Architecture, Normalise
from steersman.sae.model import SaeConfig, SparseAutoencoder
from steersman.steering.target import Latent
from steersman.steering.vector import Vector

_MODEL = ModelRef(id="toy", config_hash="a", weights_hash="b")
every_kind = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_input = pytest.mark.parametrize("normalise", NORMALISATIONS)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(one.double(), other.double(), atol=tolerance, rtol=tolerance)


# --- the definition


@every_kind
@every_input
@pytest.mark.parametrize("subtract", [True, False])
def test_encoding_and_decoding_are_what_they_are_said_to_be(
    architecture: Architecture, normalise: Normalise, subtract: bool
) -> None:
    sae, h = toy_sae(architecture, normalise, subtract_decoder_bias=subtract), residuals()
    acts, out = slow(sae, h)
    assert 0 < (acts > 0).double().mean() < 0.9
    assert close(sae.encode(h), acts)
    assert close(sae.decode(sae.encode(h), h), out)
    assert close(sae.reconstruct(h), out)


@every_kind
def test_what_fires_is_positive_and_above_its_threshold(architecture: Architecture) -> None:
    sae, h = toy_sae(architecture), residuals(50)
    acts, pre = sae.encode(h), sae.pre_activations(h)
    fires = acts != 0
    assert (acts >= 0).all()
    assert torch.equal(acts[fires], pre[fires])
    if architecture == "topk":
        assert (fires.sum(-1) <= K).all()
    else:
        threshold = torch.zeros(D_SAE) if sae.threshold is None else sae.threshold
        assert torch.equal(fires, pre > threshold)


def test_a_reading_at_its_threshold_does_not_fire() -> None:
    weights = toy_weights("jumprelu") | {"W_enc": torch.zeros(D_MODEL, D_SAE), "b_enc": torch.full((D_SAE,), 0.5)}
    sae = SparseAutoencoder(toy_config("jumprelu"), **(weights | {"threshold": torch.full((D_SAE,), 0.5)}))
    assert not sae.encode(residuals()).any()


def test_a_negative_threshold_is_relu() -> None:
    weights = toy_weights("jumprelu")
    low = SparseAutoencoder(toy_config("jumprelu"), **(weights | {"threshold": torch.full((D_SAE,), -3.0)}))
    del weights["threshold"]
    relu = SparseAutoencoder(toy_config("relu"), **weights)
    assert torch.equal(low.encode(residuals()), relu.encode(residuals()))


@every_input
def test_narrow_residuals_are_computed_in_float32(normalise: Normalise) -> None:
    sae, h = toy_sae("jumprelu", normalise), residuals()
    for dtype in (torch.bfloat16, torch.float16):
        narrow = h.to(dtype)
        for compute in (sae.encode, sae.reconstruct, lambda x: sae.encode_features(x, [1, 2])):
            assert compute(narrow).dtype == torch.float32
            assert torch.equal(compute(narrow), compute(narrow.float()))


@every_input
def test_no_token_gives_nan(normalise: Normalise) -> None:
    h = torch.cat([torch.zeros(1, D_MODEL), torch.full((1, D_MODEL), 7.0), residuals(1) * 1e6, residuals(1) * 1e-9])
    sae = toy_sae("relu", normalise)
    assert torch.isfinite(sae.encode(h)).all()
    assert torch.isfinite(sae.reconstruct(h)).all()


# --- fast paths


@every_kind
@every_input
def test_chosen_features_are_those_of_all(architecture: Architecture, normalise: Normalise) -> None:
    sae, h = toy_sae(architecture, normalise), residuals()
    for ids in ([7], [39, 0, 7, 7], list(range(D_SAE)), []):
        assert close(sae.encode_features(h, ids), sae.encode(h)[..., ids], 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, D_SAE), st.lists(st.integers(0, D_SAE - 1), max_size=6))
def test_chosen_features_under_topk_are_exact(seed: int, k: int, ids: list[int]) -> None:
    sae, h = toy_sae("topk", seed=seed, k=k), residuals(11, seed=seed + 1)
    assert close(sae.encode_features(h, ids), sae.encode(h)[..., ids], 1e-6)


@every_kind
@pytest.mark.parametrize("limit", [None, 1, 3, 1000])
def test_sparse_activations_are_the_dense_ones(architecture: Architecture, limit: int | None) -> None:
    sae, h = toy_sae(architecture), residuals()
    ids, values = sae.encode_sparse(h, limit)
    dense = sae.encode(h)
    assert ids.shape == values.shape
    assert ids.shape[:-1] == h.shape[:-1]
    assert (values.diff(dim=-1) <= 0).all()
    kept = dense.topk(ids.shape[-1], dim=-1).values
    assert close(values, kept)
    if limit in (None, 1000):
        assert close(torch.zeros_like(dense).scatter_add(-1, ids, values), dense)
        assert ids.shape[-1] == (K if architecture == "topk" else int((dense > 0).sum(-1).max()))


@every_kind
@every_input
def test_sparse_decoding_is_dense_decoding(architecture: Architecture, normalise: Normalise) -> None:
    sae, h = toy_sae(architecture, normalise), residuals()
    assert close(sae.decode_sparse(*sae.encode_sparse(h), h), sae.decode(sae.encode(h), h))


@every_kind
@pytest.mark.parametrize("tokens", [1, 3])
def test_working_in_chunks_changes_nothing(
    architecture: Architecture, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, h = toy_sae(architecture), residuals(3, 5)

    def everything() -> tuple[Tensor, ...]:
        ids, values = sae.encode_sparse(h)
        dense = torch.zeros(3, 5, D_SAE).scatter_add(-1, ids, values)
        return dense, values, sae.reconstruct(h), sae.encode_features(h, [3, 30])

    whole = everything()
    monkeypatch.setattr(model_module, "_CHUNK_ELEMENTS", tokens * D_SAE)
    for one, other in zip(whole, everything(), strict=True):
        assert close(one, other)


@every_kind
def test_no_tokens_and_a_single_one(architecture: Architecture) -> None:
    sae = toy_sae(architecture)
    empty, one = torch.zeros(2, 0, D_MODEL), residuals()[0, 0]
    assert sae.encode(empty).shape == (2, 0, D_SAE)
    assert sae.encode_features(empty, [1, 2]).shape == (2, 0, 2)
    assert sae.encode_sparse(empty).ids.shape[:2] == (2, 0)
    assert sae.reconstruct(empty).shape == empty.shape
    assert close(sae.encode(one), sae.encode(residuals())[0, 0], 1e-6)
    assert close(sae.reconstruct(one), sae.reconstruct(residuals())[0, 0], 1e-6)
    assert sae.encode_sparse(one).values.ndim == 1


def test_where_nothing_fires_the_bias_is_decoded() -> None:
    sae = SparseAutoencoder(toy_config(), **(toy_weights() | {"b_enc": torch.full((D_SAE,), -1e6)}))
    ids, values = sae.encode_sparse(residuals())
    assert not values.any()
    assert close(sae.decode_sparse(ids, values), sae.b_dec.expand(2, 7, D_MODEL))


@every_kind
def test_gradients_reach_the_residuals_on_every_path(architecture: Architecture) -> None:
    sae, ids = toy_sae(architecture), [2, 9, 31]

    def gradient(compute: Callable[[Tensor], Tensor]) -> Tensor:
        h = residuals().requires_grad_()
        compute(h).sum().backward()
        assert h.grad is not None
        return h.grad

    assert close(gradient(lambda h: sae.encode_features(h, ids)), gradient(lambda h: sae.encode(h)[..., ids]), 1e-4)
    assert close(gradient(sae.reconstruct), gradient(lambda h: sae.decode(sae.encode(h))), 1e-4)
    assert not sae.W_enc.requires_grad


# --- latents on their own


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "batchtopk"])
@pytest.mark.parametrize("normalise", FIXED)
@pytest.mark.parametrize("subtract", [True, False])
def test_a_latent_reads_the_raw_residual_as_the_sae_does(
    architecture: Architecture, normalise: Normalise, subtract: bool
) -> None:
    sae, h = toy_sae(architecture, normalise, subtract_decoder_bias=subtract), residuals()
    base = sae.decode(torch.zeros(D_SAE))
    for latent in (0, 17, D_SAE - 1):
        rows = sae.latent_rows(latent)
        steered = Latent(
            id=latent,
            encoder_row=Vector(rows.encoder_row),
            encoder_bias=rows.encoder_bias,
            decoder_row=Vector(rows.decoder_row),
            threshold=rows.threshold,
        )
        assert close(steered.read(h), sae.encode(h)[..., latent])
        one = torch.zeros(D_SAE)
        one[latent] = 1.0
        assert close(rows.decoder_row, sae.decode(one) - base)


@every_kind
@pytest.mark.parametrize("normalise", FIXED)
def test_folding_keeps_the_function(architecture: Architecture, normalise: Normalise) -> None:
    sae, h = toy_sae(architecture, normalise), residuals()
    folded = sae.fold_normalisation()
    assert (folded.config.normalise, folded.config.subtract_decoder_bias) == ("none", False)
    assert close(folded.encode(h), sae.encode(h))
    assert close(folded.reconstruct(h), sae.reconstruct(h))


@pytest.mark.parametrize("normalise", PER_TOKEN)
def test_what_depends_on_the_token_is_not_folded(normalise: Normalise) -> None:
    sae = toy_sae("relu", normalise)
    for refused in (sae.fold_normalisation, lambda: sae.latent_rows(0), lambda: sae.decode(sae.encode(residuals()))):
        with pytest.raises(SaeError, match=normalise):
            refused()


def test_a_topk_latent_stands_alone_only_with_a_threshold() -> None:
    sae, h = toy_sae("topk"), residuals()
    with pytest.raises(SaeError, match="as_jumprelu"):
        sae.latent_rows(3)
    alone = sae.as_jumprelu(0.7)
    pre = sae.pre_activations(h)
    assert torch.equal(alone.encode(h), torch.where(pre > 0.7, pre, 0.0))
    assert alone.latent_rows(3).threshold == pytest.approx(0.7)
    each = torch.linspace(0.1, 2, D_SAE)
    assert torch.equal(sae.as_jumprelu(each).encode(h), torch.where(pre > each, pre, 0.0))


# --- identity


def test_the_tensors_handed_in_are_copied() -> None:
    weights = toy_weights("jumprelu")
    sae = SparseAutoencoder(toy_config("jumprelu"), **weights)
    before = sae.encode(residuals())
    for tensor in weights.values():
        tensor.fill_(float("nan"))
    assert torch.equal(sae.encode(residuals()), before)


def test_the_hash_is_of_what_is_computed_and_of_nothing_else() -> None:
    sae = toy_sae("jumprelu")
    assert sae.weights_hash == toy_sae("jumprelu").weights_hash
    assert sae.weights_hash == toy_sae("jumprelu", layer=7, origin="elsewhere").weights_hash
    assert sae.weights_hash == sae.for_model(_MODEL).weights_hash == sae.to("cpu").weights_hash
    others = [toy_sae("jumprelu", subtract_decoder_bias=False), toy_sae("batchtopk"), toy_sae("jumprelu", "layer_norm")]
    for name, tensor in toy_weights("jumprelu").items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1e-3
        others.append(SparseAutoencoder(toy_config("jumprelu"), **(toy_weights("jumprelu") | {name: changed})))
    assert len({sae.weights_hash, *(other.weights_hash for other in others)}) == len(others) + 1
    assert toy_sae("topk").weights_hash != toy_sae("topk", k=K + 1).weights_hash


def test_another_model_or_layer_is_refused() -> None:
    sae = toy_sae()
    sae.check_fits(_MODEL)
    sae.check_fits(_MODEL, 3)
    bound = sae.for_model(_MODEL)
    bound.check_fits(_MODEL, 3)
    stranger = ModelRef(id="stranger", config_hash="0", weights_hash="1")
    with pytest.raises(SaeError, match="stranger"):
        bound.check_fits(stranger)
    with pytest.raises(SaeError, match="layer 3, not layer 4"):
        bound.check_fits(_MODEL, 4)


# --- what is refused


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"architecture": "gelu"}, "gelu"),
        ({"normalise": "batch"}, "batch"),
        ({"layer": -1}, "layer -1"),
        ({"d_sae": 0}, "d_sae"),
        ({"architecture": "topk"}, "needs k"),
        ({"k": 3}, "no k"),
        ({"architecture": "topk", "k": 0}, "k=0"),
        ({"architecture": "topk", "k": D_SAE + 1}, f"k={D_SAE + 1}"),
        ({"input_scale": 2.0}, "input_scale"),
        ({"normalise": "expected_norm", "input_scale": float("nan")}, "input_scale"),
        ({"normalise": "expected_norm", "input_scale": -1.0}, "input_scale"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    facts: dict[str, Any] = {"architecture": "relu", "d_model": D_MODEL, "d_sae": D_SAE, "layer": 0}
    with pytest.raises(SaeError, match=said):
        SaeConfig(**(facts | wrong))


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_weights_of_the_wrong_shape_or_value_are_refused(name: str) -> None:
    good = toy_weights("jumprelu")
    for value in (float("nan"), float("inf")):
        bad = good[name].clone()
        bad.view(-1)[3] = value
        with pytest.raises(SaeError, match=f"{name} must be finite; 1 of"):
            SparseAutoencoder(toy_config("jumprelu"), **(good | {name: bad}))
    for bad in (good[name][:-1], good[name].unsqueeze(0)):
        with pytest.raises(SaeError, match=f"{name} has shape"):
            SparseAutoencoder(toy_config("jumprelu"), **(good | {name: bad}))


@every_kind
def test_thresholds_are_there_exactly_where_they_count(architecture: Architecture) -> None:
    weights = toy_weights(architecture)
    threshold = weights.pop("threshold", None)
    with pytest.raises(SaeError, match="threshold"):
        SparseAutoencoder(
            toy_config(architecture), **weights, threshold=torch.ones(D_SAE) if threshold is None else None
        )


def test_what_does_not_fit_is_refused() -> None:
    sae = toy_sae("topk")
    with pytest.raises(SaeError, match=f"width {D_MODEL + 1}"):
        sae.encode(torch.zeros(2, D_MODEL + 1))
    with pytest.raises(SaeError, match="on meta, the SAE on cpu"):
        sae.encode(torch.zeros(2, D_MODEL, device="meta"))
    with pytest.raises(SaeError, match=f"{D_SAE - 1} latents"):
        sae.decode(torch.zeros(2, D_SAE - 1))
    for latent in (-1, D_SAE):
        with pytest.raises(SaeError, match=f"latent {latent} does not exist"):
            sae.encode_features(residuals(), [0, latent])
    with pytest.raises(SaeError, match="max_features"):
        sae.encode_sparse(residuals(), 0)
    with pytest.raises(SaeError, match="finite"):
        sae.as_jumprelu(float("nan"))
    with pytest.raises(SaeError, match="shape"):
        sae.as_jumprelu(torch.ones(3))
