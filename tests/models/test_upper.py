"""The upper half predicts what the whole model predicts, and its gradient is the slope of that."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_model
from torch import Tensor

from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel
from steersman.models.upper import Reading, UpperModel

_READINGS = [
    Reading(tuple(range(10, 30)), 8),
    Reading(tuple(range(40, 52)), 3),
    Reading(tuple(range(7, 40)), 30),
]
_LAYER = 1


def _slow(model: LanguageModel, reading: Reading, added: Tensor) -> Tensor:
    """One text, all blocks, a plain hook."""
    ids = torch.tensor([reading.ids])

    def push(hidden: Tensor) -> Tensor:
        edited = hidden + added
        return torch.cat([hidden[:, :1], edited[:, 1:]], 1)

    with editing(model.blocks, {_LAYER: push}):
        logprobs = model.hf(input_ids=ids).logits[0].float().log_softmax(-1)
    columns = torch.arange(reading.start - 1, len(reading.ids) - 1)
    return logprobs[columns, ids[0, reading.start :]]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_predictions_equal_those_of_the_whole_model(kind: str) -> None:
    model = tiny_model(kind)
    upper = UpperModel(model, _LAYER)
    added = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    batches = upper.prepare(_READINGS, batch_tokens=80)
    assert len(batches) > 1
    found = torch.cat([upper.logprobs(batch, added) for batch in batches])
    by_length = sorted(_READINGS, key=lambda reading: len(reading.ids))
    torch.testing.assert_close(
        found, torch.cat([_slow(model, each, added) for each in by_length]), atol=2e-4, rtol=1e-3
    )


def test_the_gradient_is_the_slope(tiny: LanguageModel) -> None:
    upper = UpperModel(tiny, _LAYER)
    (batch,) = upper.prepare(_READINGS[:2])
    made = torch.Generator().manual_seed(1)
    added = torch.randn(tiny.d_model, generator=made).requires_grad_()
    (slope,) = torch.autograd.grad(upper.logprobs(batch, added).sum(), added)
    for _ in range(3):
        step = torch.randn(tiny.d_model, generator=made) * 1e-2
        with torch.no_grad():
            measured = float(upper.logprobs(batch, added + step).sum() - upper.logprobs(batch, added - step).sum()) / 2
        assert measured == pytest.approx(float(slope @ step), rel=0.05, abs=1e-3)


def test_the_model_is_left_as_it_was(tiny: LanguageModel) -> None:
    ids = torch.tensor([_READINGS[0].ids])
    before = tiny.hf(input_ids=ids).logits
    upper = UpperModel(tiny, _LAYER)
    (batch,) = upper.prepare(_READINGS[:1])
    upper.logprobs(batch, torch.ones(tiny.d_model))
    with pytest.raises(RuntimeError):
        upper.logprobs(batch, torch.ones(tiny.d_model + 1))
    assert torch.equal(tiny.hf(input_ids=ids).logits, before)
    assert not any("forward" in block.__dict__ for block in tiny.blocks)


def test_the_first_token_is_never_pushed(tiny: LanguageModel) -> None:
    upper = UpperModel(tiny, _LAYER)
    (batch,) = upper.prepare([Reading((5, 6), 1)])  # Predicted from the first token alone.
    pushed, plain = (upper.logprobs(batch, torch.full((tiny.d_model,), value)) for value in (5.0, 0.0))
    assert torch.equal(pushed, plain)
