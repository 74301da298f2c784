"""A perfect autoencoder loses nothing, an empty one everything, and both are measured on the tokens they stand for."""

from __future__ import annotations

import pytest
import torch

from steersman.errors import DataError, SaeError
from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel, ModelRef
from steersman.sae.metrics import prediction, reconstruction
from steersman.sae.model import SaeConfig, SparseAutoencoder

_TEXTS = ["The first of a few texts.", "Another, somewhat longer one, so that padding is needed.", "short"]


def _identity(model: LanguageModel, scale: float = 1.0, layer: int = 1) -> SparseAutoencoder:
    """Every residual is the difference of two non-negative ones: an exact autoencoder, times `scale`."""
    eye = torch.eye(model.d_model)
    config = SaeConfig(
        architecture="relu", d_model=model.d_model, d_sae=2 * model.d_model, layer=layer, model=model.ref
    )
    return SparseAutoencoder(
        config, W_enc=torch.cat([eye, -eye], 1), b_enc=torch.zeros(2 * model.d_model), W_dec=scale * torch.cat([eye, -eye]),
        b_dec=torch.zeros(model.d_model),
    )  # fmt: skip


def test_reconstruction_is_measured_over_all_tokens_together(tiny: LanguageModel) -> None:
    rows = torch.randn(5000, tiny.d_model) + 2.0
    rows[:, 3] = rows[:, 3].abs()  # One of the two latents for this dimension never fires.
    exact = reconstruction(_identity(tiny), [rows[:10], rows[10:]])
    assert exact.tokens == 5000
    assert exact.explained_variance == pytest.approx(1.0)
    assert exact.l0 == tiny.d_model
    assert exact.dead_share == pytest.approx(1 / (2 * tiny.d_model))
    half = reconstruction(_identity(tiny, 0.5), [rows])
    expected = 1 - (rows / 2).square().sum() / (rows - rows.mean(0)).square().sum()
    assert half.explained_variance == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(DataError, match="no activations"):
        reconstruction(_identity(tiny), [])


def test_cross_entropy_is_that_of_the_model_with_the_layer_replaced(tiny: LanguageModel) -> None:
    sequences = [tiny.encode(text) for text in _TEXTS]
    exact = prediction(tiny, _identity(tiny), sequences)
    assert exact.sae == pytest.approx(exact.plain, rel=1e-5)
    assert exact.recovered == pytest.approx(1.0, abs=1e-4)
    assert exact.tokens == sum(len(ids) - 2 for ids in sequences)
    nothing = prediction(tiny, _identity(tiny, 0.0), sequences)
    assert nothing.recovered == pytest.approx(0.0, abs=1e-4)
    half = prediction(tiny, _identity(tiny, 0.5), sequences, batch_tokens=1)
    total = 0.0
    for ids in sequences:
        edit = lambda hidden: torch.cat([hidden[:, :1], hidden[:, 1:] / 2], 1)  # noqa: E731
        with torch.no_grad(), editing(tiny.blocks, {1: edit}):
            logits = tiny.hf(torch.tensor([ids])).logits[0, 1:-1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[2:]), reduction="sum"))
    assert half.sae == pytest.approx(total / half.tokens, rel=1e-5)


def test_batching_changes_nothing_and_the_model_is_as_before(tiny: LanguageModel) -> None:
    sequences = [tiny.encode(text) for text in _TEXTS]
    before = tiny.hf(torch.tensor([sequences[0]])).logits
    one, other = (prediction(tiny, _identity(tiny, 0.5), sequences, batch_tokens=size) for size in (1, 4096))
    assert (one.plain, one.sae, one.zero) == pytest.approx((other.plain, other.sae, other.zero), rel=1e-5)
    assert torch.equal(tiny.hf(torch.tensor([sequences[0]])).logits, before)


def test_another_model_and_texts_that_are_too_short_are_refused(tiny: LanguageModel) -> None:
    sae = _identity(tiny).for_model(ModelRef(id="other", config_hash="c", weights_hash="w"))
    with pytest.raises(SaeError, match="trained on other"):
        prediction(tiny, sae, [[5, 6, 7]])
    with pytest.raises(DataError, match="three tokens"):
        prediction(tiny, _identity(tiny), [[5, 6], []])
