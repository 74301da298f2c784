"""A pass over rows of a slab gives the logits of a plain forward pass, whatever the architecture, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from tests.engine.rig import NORMS, hooks_of, model_of, push
from tests.tiny import ARCHITECTURES, N_VOCAB, tiny_model
from torch import Tensor

from steersman.engine.runner import Runner
from steersman.errors import UnsupportedModel
from steersman.models.language_model import LanguageModel
from steersman.steering.plan import BatchPlan, TokenBatch

LENGTHS = (3, 21, 12)


def plain(model: LanguageModel, ids: Tensor) -> Tensor:
    """Logits of one sequence by the model alone, no cache."""
    with torch.no_grad():
        logits: Tensor = model.hf(input_ids=ids[None], use_cache=False).logits[0]
    return logits


def sequences(count: int = 3, length: int = 24) -> Tensor:
    return torch.randint(4, N_VOCAB, (count, length), generator=torch.Generator().manual_seed(1))


def check_passes(model: LanguageModel) -> None:
    """Prefill three rows in two chunks, then decode each at its own position; every logit beside the plain model's."""
    runner, ids = Runner(model), sequences()
    expected = [plain(model, row) for row in ids]
    cache = runner.new_cache()
    for start, stop in ((0, 8), (8, 20)):
        positions = torch.arange(start, stop).expand(3, -1)
        keep = torch.tensor([[0, 3], [2, 2], [7, 1]])
        logits = runner.forward(cache, ids[:, start:stop], positions, keep)
        for row, columns in enumerate(keep):
            assert torch.allclose(logits[row], expected[row][start + columns], atol=2e-3)
    at = [9, 20, 14]
    for _ in range(3):
        positions = torch.tensor(at)[:, None]
        logits = runner.forward(cache, ids.gather(1, positions), positions, torch.zeros(3, 1, dtype=torch.long))
        for row, position in enumerate(at):
            assert torch.allclose(logits[row, 0], expected[row][position], atol=2e-3)
        at = [position + 1 for position in at]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_are_those_of_a_plain_forward_pass(kind: str) -> None:
    check_passes(model_of(kind))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_rows_read_on_from_where_each_one_ends(kind: str) -> None:
    model, ids = model_of(kind), sequences(3, 32)
    runner, starts = Runner(model), torch.tensor(LENGTHS)[:, None]
    prompts, cache = runner.new_cache(), runner.new_cache(29)
    runner.forward(prompts, ids[:, :24], torch.arange(24).expand(3, -1), starts - 1)
    cache.take_rows(prompts, range(3), LENGTHS)
    positions = starts + torch.arange(8)
    logits = runner.forward(cache, ids.gather(1, positions), positions, torch.tensor([[0, 7]] * 3))
    for row, start in enumerate(LENGTHS):
        assert torch.allclose(logits[row], plain(model, ids[row])[[start, start + 7]], atol=2e-3)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gemma3", "qwen3_moe"])
def test_logits_with_the_attention_written_out(kind: str) -> None:
    model = tiny_model(kind)
    model.hf.set_attn_implementation("eager")
    check_passes(model)


def test_logits_are_float32_whatever_the_model_computes_in() -> None:
    runner = Runner(tiny_model(dtype=torch.bfloat16))
    ids = sequences(1, 4)
    logits = runner.forward(runner.new_cache(), ids, torch.arange(4)[None], torch.tensor([[3]]))
    assert logits.dtype == torch.float32
    assert logits.shape == (1, 1, N_VOCAB)


def test_a_row_does_not_see_the_others() -> None:
    runner, ids = Runner(model_of("llama")), sequences(4, 16)
    positions, keep = torch.arange(16).expand(4, -1), torch.full((4, 1), 15)
    together = runner.forward(runner.new_cache(), ids, positions, keep)
    other = ids.clone()
    other[1:] = 7
    assert torch.equal(runner.forward(runner.new_cache(), other, positions, keep)[0], together[0])


def test_a_steered_pass_leaves_the_model_as_it_was() -> None:
    model, ids = model_of("llama"), sequences(2, 8)
    runner, before, hooks = Runner(model), plain(model, ids[0]), hooks_of(model)
    positions, keep = torch.arange(8).expand(2, -1), torch.full((2, 1), 7)
    batch = TokenBatch(
        token_ids=ids,
        positions=positions,
        prompt_lengths=torch.full((2, 1), 8),
        valid=torch.ones(2, 8, dtype=torch.bool),
        gains=torch.ones(2),
    )
    bound = BatchPlan([push(), None], NORMS, torch.device("cpu")).bind(batch, [{}, {}])
    steered = runner.forward(runner.new_cache(), ids, positions, keep, bound)
    unsteered = runner.forward(runner.new_cache(), ids, positions, keep)
    assert torch.equal(steered[1], unsteered[1])
    assert not torch.equal(steered[0], unsteered[0])
    assert hooks_of(model) == hooks
    assert torch.equal(plain(model, ids[0]), before)


@pytest.mark.parametrize("odd", ["linear_attention", "chunked_attention"])
def test_layers_that_keep_no_ordinary_keys_are_refused(odd: str) -> None:
    model = tiny_model("qwen3")
    model.hf.config.layer_types = [odd, *model.hf.config.layer_types[1:]]
    with pytest.raises(UnsupportedModel, match=odd):
        Runner(model)
