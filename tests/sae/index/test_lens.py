from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny import ARCHITECTURES, D_MODEL, N_LAYERS, N_VOCAB, tiny_model
from torch import Tensor, nn

from steersman.errors import SaeError, UnsupportedModel
from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel
from steersman.sae.config import SaeConfig
from steersman.sae.index import lens
from steersman.sae.index.lens import final_directions, final_norm, logit_lens
from steersman.sae.model import SparseAutoencoder

IDS = torch.arange(4, 20)[None]


def _model(kind: str = "llama", **facts: Any) -> LanguageModel:
    """With a final norm that does something."""
    model = tiny_model(kind, **facts)
    made = torch.Generator().manual_seed(3)
    for parameter in final_norm(model).parameters():
        parameter.copy_(torch.rand(parameter.shape, generator=made) + 0.5)
    return model


def _sae(d_sae: int = 20, d_model: int = D_MODEL, **facts: Any) -> SparseAutoencoder:
    made = torch.Generator().manual_seed(1)
    rows = torch.randn(d_sae, d_model, generator=made)
    config = SaeConfig(architecture="relu", d_model=d_model, d_sae=d_sae, layer=1, **facts)
    zeros = {"W_enc": torch.zeros(d_model, d_sae), "b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_model)}
    return SparseAutoencoder(config, W_dec=rows, **zeros)


@torch.no_grad()
def _last(model: LanguageModel, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The last block's output, with `add` added to it, and the logits it leads to."""
    seen = []

    def edit(hidden: Tensor) -> Tensor:
        seen.append(hidden if add is None else hidden + add)
        return seen[0]

    with editing(model.blocks, {N_LAYERS - 1: edit}):
        logits = model.hf(IDS).logits
    return seen[0], logits


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_the_final_norm_is_found_in_every_architecture(kind: str) -> None:
    model = _model(kind)
    hidden, logits = _last(model)
    with torch.no_grad():
        made = model.hf.get_output_embeddings()(final_norm(model)(hidden))
    if kind == "gemma2":
        made = 30 * torch.tanh(made / 30)
    torch.testing.assert_close(made, logits)


def test_the_lens_equals_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lens, "_VOCABULARY_AT_ONCE", 100)
    monkeypatch.setattr(lens, "_CHUNK_ELEMENTS", 700)
    model, sae = _model(), _sae()
    logits = sae.W_dec * model.hf.model.norm.weight @ model.hf.lm_head.weight.T
    found = logit_lens(model, sae, 6)
    assert torch.equal(found.promoted.long(), logits.argsort(descending=True)[:, :6])
    assert torch.equal(found.suppressed.long(), logits.argsort()[:, :6])
    assert found.promoted.dtype == found.suppressed.dtype == torch.int32


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma3", "olmo"])
def test_a_strong_feature_makes_its_tokens_likeliest_and_unlikeliest(kind: str) -> None:
    model, sae = _model(kind), _sae()
    found = logit_lens(model, sae)
    _, plain = _last(model)
    with torch.no_grad():  # What a norm's bias promotes belongs to no feature.
        nothing = model.hf.get_output_embeddings()(final_norm(model)(torch.zeros(D_MODEL)))
    for feature in range(3):
        _, steered = _last(model, 1e6 * sae.W_dec[feature])
        token, other = found.promoted[feature, 0], found.suppressed[feature, 0]
        assert ((steered - nothing).argmax(-1) == token).all()
        assert ((steered - nothing).argmin(-1) == other).all()
        likelier = (steered - plain).log_softmax(-1)
        assert (likelier[..., token] > likelier[..., other]).all()
        if not nothing.any():
            assert (steered.softmax(-1)[..., token] >= plain.softmax(-1)[..., token]).all()


def test_tied_embeddings_and_half_precision() -> None:
    model = _model("gpt2", dtype=torch.bfloat16)
    assert model.hf.get_output_embeddings().weight is model.hf.get_input_embeddings().weight
    norm, sae = final_norm(model), _sae()
    centred = sae.W_dec - sae.W_dec.mean(1, keepdim=True)
    logits = (centred * norm.weight.float()) @ model.hf.lm_head.weight.float().T
    # Unit variance, as the norm gives it, changes no order.
    assert torch.equal(logit_lens(model, sae, 3).promoted.long(), logits.argsort(descending=True)[:, :3])
    assert norm.weight.dtype == torch.bfloat16


def test_directions_do_not_depend_on_length() -> None:
    model, rows = _model("gemma3"), _sae().W_dec
    torch.testing.assert_close(
        final_directions(model, rows * 1e-6), final_directions(model, rows), rtol=1e-4, atol=1e-4
    )
    assert not final_directions(model, torch.zeros(1, D_MODEL)).any()


def test_all_tokens_may_be_asked_for(tiny: LanguageModel) -> None:
    found = logit_lens(tiny, _sae(), N_VOCAB)
    assert torch.equal(found.promoted.flip(1), found.suppressed)
    assert (found.promoted.sort().values == torch.arange(N_VOCAB)).all()
    for n in (0, N_VOCAB + 1):
        with pytest.raises(SaeError, match=f"has 1 to {N_VOCAB}"):
            logit_lens(tiny, _sae(), n)


def test_an_sae_of_another_model_is_refused_by_the_lens(tiny: LanguageModel) -> None:
    with pytest.raises(SaeError, match="of width 16 does not fit"):
        logit_lens(tiny, _sae(d_model=16))
    with pytest.raises(SaeError, match="was trained on"):
        logit_lens(tiny, _sae(model=replace(tiny.ref, weights_hash="0" * 64)))


def test_a_model_without_a_final_norm_is_refused() -> None:
    model = tiny_model()
    model.hf.model.odd = model.hf.model.norm
    del model.hf.model.norm
    with pytest.raises(UnsupportedModel, match="no final norm beside its decoder blocks"):
        logit_lens(model, _sae())


def test_a_model_without_an_unembedding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(model.hf, "get_output_embeddings", lambda: nn.Identity())
    with pytest.raises(UnsupportedModel, match="no unembedding"):
        logit_lens(model, _sae())
