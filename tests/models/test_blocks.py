"""Decoder blocks are found in every architecture, read as transformers reads them, and left as they were."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import ARCHITECTURES, D_MODEL, N_LAYERS, tiny_model
from torch import Tensor, nn

from steersman.errors import ModelError, UnsupportedModel
from steersman.models.blocks import check_layer, editing, find_blocks, reading, text_config
from steersman.models.language_model import LanguageModel

_IDS = torch.tensor([[5, 70, 99, 104, 7, 33, 250, 18, 19, 20, 21, 22]])


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """A tiny model of each architecture."""
    return tiny_model(request.param)


class Shell(nn.Module):
    """A wrapper, as adapters and multimodal models have."""

    def __init__(self, inner: nn.Module, name: str = "inner") -> None:
        super().__init__()
        self.add_module(name, inner)
        self.config = inner.config


class TupleBlock(nn.Module):
    """A block that returns the stream first and something else after it, as transformers 4 did."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
        return hidden + 1.0, "cache"


class Stack(nn.Module):
    """Blocks in a row."""

    def __init__(self, n_layers: int = 3) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=n_layers)
        self.blocks = nn.ModuleList(TupleBlock() for _ in range(n_layers))

    def forward(self, hidden: Tensor) -> tuple[Tensor, list[str]]:
        rest = []
        for block in self.blocks:
            hidden, kept = block(hidden)
            rest.append(kept)
        return hidden, rest


@torch.no_grad()
def _logits(model: LanguageModel) -> Tensor:
    return model.hf(input_ids=_IDS).logits  # type: ignore[no-any-return]


def _hooks(model: LanguageModel) -> list[int]:
    # transformers leaves hooks of its own behind, so the number is compared.
    return [len(block._forward_hooks) for block in model.blocks]


# --- finding


def test_every_architecture_has_its_blocks(model: LanguageModel) -> None:
    assert len(model.blocks) == model.n_layers == N_LAYERS
    assert model.d_model == D_MODEL
    assert len({id(block) for block in model.blocks}) == N_LAYERS
    # What transformers itself calls a decoder layer is the last word.
    kinds = {type(block).__name__ for block in model.blocks}
    assert len(kinds) == 1
    assert kinds <= set(model.hf._no_split_modules)


def test_a_wrapper_does_not_hide_them(model: LanguageModel) -> None:
    assert find_blocks(Shell(model.hf)) == model.blocks
    assert find_blocks(Shell(Shell(Shell(model.hf), "base_model"), "language_model")) == model.blocks


def test_a_vision_tower_of_the_same_depth_is_not_taken_for_them(model: LanguageModel) -> None:
    shell = Shell(model.hf)
    tower = nn.Module()
    tower.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(N_LAYERS))
    for name in ("vision_tower", "visual", "audio_tower"):
        shell.add_module(name, tower)
    assert find_blocks(shell) == model.blocks


def test_lists_inside_the_blocks_are_not_taken_for_them() -> None:
    hf = tiny_model().hf
    for block in find_blocks(hf):
        block.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(N_LAYERS))
    assert find_blocks(hf) == tuple(hf.model.layers)


def test_two_equal_candidates_are_a_question_not_a_guess() -> None:
    shell = Stack()
    shell.others = nn.ModuleList(TupleBlock() for _ in range(3))
    with pytest.raises(UnsupportedModel, match=r"blocks, others|others, blocks"):
        find_blocks(shell)


def test_a_model_without_blocks_is_refused() -> None:
    shell = Stack(3)
    shell.config.num_hidden_layers = 4
    with pytest.raises(UnsupportedModel):
        find_blocks(shell)
    del shell.config.num_hidden_layers
    with pytest.raises(UnsupportedModel):
        find_blocks(shell)


def test_the_text_config_of_a_wrapper_is_the_decoders() -> None:
    inner = tiny_model().hf
    outer = nn.Module()
    outer.config = SimpleNamespace(get_text_config=lambda: inner.config)
    assert text_config(outer) is inner.config
    assert text_config(inner) is inner.config


# --- reading


@torch.no_grad()
def test_what_is_read_is_what_transformers_calls_hidden_states(model: LanguageModel) -> None:
    states = model.hf(input_ids=_IDS, output_hidden_states=True).hidden_states
    with torch.no_grad(), reading(model.blocks, range(N_LAYERS)) as outputs:
        model.hf(input_ids=_IDS)
    for layer in range(N_LAYERS - 1):
        assert torch.equal(outputs[layer], states[layer + 1])
    # transformers gives the last one after the final norm.
    base = model.hf.base_model
    (norm,) = [getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name)]
    assert torch.equal(norm(outputs[N_LAYERS - 1]), states[N_LAYERS])


@torch.no_grad()
def test_the_pass_ends_after_the_last_layer_asked_for(model: LanguageModel) -> None:
    calls: list[int] = []
    for layer, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _m, _a, layer=layer: calls.append(layer))
    for layers in ([0], [2, 1], [1, 1], [3]):
        calls.clear()
        with reading(model.blocks, layers) as outputs:
            model.hf(input_ids=_IDS)
        assert calls == list(range(max(layers) + 1))
        assert set(outputs) == set(layers)


def test_hooks_are_gone_and_logits_return_bit_equal(model: LanguageModel) -> None:
    before, hooks = _logits(model), _hooks(model)
    with reading(model.blocks, [0, 2]), torch.no_grad():
        model.hf(input_ids=_IDS)
    assert torch.equal(_logits(model), before)
    with editing(model.blocks, {layer: lambda hidden: hidden * 2 + 1 for layer in range(N_LAYERS)}):
        assert not torch.equal(_logits(model), before)
    assert torch.equal(_logits(model), before)
    for error in (ValueError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)), editing(model.blocks, {1: _raising(error)}):
            _logits(model)
        with pytest.raises(type(error)), reading(model.blocks, [1]):
            raise error
    assert torch.equal(_logits(model), before)
    assert _hooks(model) == hooks


def test_an_interrupted_pass_leaves_the_hidden_states_readable(model: LanguageModel) -> None:
    with torch.no_grad():
        before = model.hf(input_ids=_IDS, output_hidden_states=True).hidden_states
        with reading(model.blocks, [1]):
            model.hf(input_ids=_IDS, output_hidden_states=True)
        after = model.hf(input_ids=_IDS, output_hidden_states=True).hidden_states
    assert len(before) == len(after)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_an_error_inside_the_model_is_not_taken_for_the_end(tiny: LanguageModel) -> None:
    with pytest.raises(IndexError), reading(tiny.blocks, [1]):
        tiny.hf(input_ids=torch.tensor([[10**6]]))


# --- editing


@torch.no_grad()
def test_an_edit_is_what_the_next_block_reads(model: LanguageModel) -> None:
    shift = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    with reading(model.blocks, [1]) as plain:
        model.hf(input_ids=_IDS)
    seen: list[Tensor] = []
    probe = model.blocks[2].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append((args or [kwargs["hidden_states"]])[0]), with_kwargs=True
    )
    with editing(model.blocks, {1: lambda hidden: hidden + shift}):
        model.hf(input_ids=_IDS)
    probe.remove()
    assert torch.equal(seen[0], plain[1] + shift)


def test_an_edit_that_changes_nothing_changes_no_bit(model: LanguageModel) -> None:
    before = _logits(model)
    for edit in (lambda _hidden: None, lambda hidden: hidden, lambda hidden: hidden.clone()):
        with editing(model.blocks, dict.fromkeys(range(N_LAYERS), edit)):
            assert torch.equal(_logits(model), before)


def test_what_is_read_while_editing_is_the_edited_stream(tiny: LanguageModel) -> None:
    with torch.no_grad(), editing(tiny.blocks, {1: torch.zeros_like}), reading(tiny.blocks, [0, 1]) as outputs:
        tiny.hf(input_ids=_IDS)
    assert outputs[0].any()
    assert not outputs[1].any()


def test_hooks_of_others_stay(tiny: LanguageModel) -> None:
    calls: list[int] = []
    other = tiny.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    with editing(tiny.blocks, {1: lambda _hidden: None}):
        _logits(tiny)
    _logits(tiny)
    other.remove()
    assert len(calls) == 2


def test_blocks_that_return_a_tuple_keep_the_rest_of_it() -> None:
    stack, start = Stack(), torch.zeros(1, 2, 4)
    with editing(tuple(stack.blocks), {1: lambda hidden: hidden * 10}):
        hidden, rest = stack(start)
    assert hidden.unique().tolist() == [21.0]
    assert rest == ["cache"] * 3
    with reading(tuple(stack.blocks), [0, 1]) as outputs:
        stack(start)
    assert {layer: output.unique().tolist() for layer, output in outputs.items()} == {0: [1.0], 1: [2.0]}


@pytest.mark.parametrize("layer", [-1, N_LAYERS, 99])
def test_a_layer_that_does_not_exist_is_refused_and_leaves_no_hook(tiny: LanguageModel, layer: int) -> None:
    hooks = _hooks(tiny)
    with pytest.raises(ModelError, match=f"layer {layer} "):
        check_layer(layer, N_LAYERS)
    with pytest.raises(ModelError), editing(tiny.blocks, {0: lambda _hidden: None, layer: lambda _hidden: None}):
        pytest.fail("the block must not begin")
    with pytest.raises(ModelError), reading(tiny.blocks, [0, layer]):
        pytest.fail("the block must not begin")
    assert _hooks(tiny) == hooks


def _raising(error: BaseException) -> Any:
    def edit(_hidden: Tensor) -> Tensor:
        raise error

    return edit
