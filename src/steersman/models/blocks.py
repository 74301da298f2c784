"""Find the decoder blocks of a transformers model, and read or edit what flows out of them.

Layer `i` is the output of decoder block `i`, counted from 0: the residual stream after the block's attention and MLP have
been added. Knows nothing of text, recipes or caches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steersman.errors import ModelError, UnsupportedModel

Edit = Callable[[Tensor], Tensor | None]
"""Takes a block's output `(batch, seq, d_model)`; returns the replacement, or None to leave it as it is."""


class _Stop(Exception):
    """Ends a forward pass once the last layer asked for has been read."""


def find_blocks(hf: nn.Module) -> tuple[nn.Module, ...]:
    """The decoder blocks of a causal language model, first to last.

    They are the `ModuleList` with one entry per hidden layer that lies nearest to the root of the text decoder; wrappers
    around the model (adapters, multimodal shells) do not hide them.

    Raises:
        UnsupportedModel: no such list, or several at the same depth.
    """
    config = text_config(hf)
    n_layers = getattr(config, "num_hidden_layers", None)
    root: nn.Module = hf
    found = [
        (name.count("."), name, module)
        for name, module in root.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and not _is_vision(name)
    ]
    if not found:
        raise UnsupportedModel(
            f"{type(hf).__name__} has no list of {n_layers} decoder blocks; steersman reads decoder-only language models"
        )
    depth = min(entry[0] for entry in found)
    nearest = [entry for entry in found if entry[0] == depth]
    if len(nearest) > 1:
        names = ", ".join(name for _, name, _ in nearest)
        raise UnsupportedModel(
            f"{type(hf).__name__} has several lists of {n_layers} blocks ({names}); which one decodes?"
        )
    return tuple(nearest[0][2])


def text_config(hf: nn.Module) -> Any:
    """The configuration of the text decoder (of the whole model, where there is only one)."""
    config: Any = hf.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _is_vision(name: str) -> bool:
    return any(part in {"vision_tower", "vision_model", "visual", "audio_tower", "encoder"} for part in name.split("."))


@contextlib.contextmanager
def editing(blocks: Sequence[nn.Module], edits: Mapping[int, Edit]) -> Iterator[None]:
    """While the block runs, pass the output of each named layer through its edit. One hook a layer, always taken off.

    Raises:
        ModelError: a layer that the model does not have.
    """
    handles = []
    try:
        for layer, edit in edits.items():
            check_layer(layer, len(blocks))
            handles.append(blocks[layer].register_forward_hook(_hook(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def reading(blocks: Sequence[nn.Module], layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs of `layers`; the forward pass ends after the last of them.

    Call the model inside the block. Yields a dict that fills with `(batch, seq, d_model)` tensors, by layer.
    """
    outputs: dict[int, Tensor] = {}
    last = max(layers)

    def reader(layer: int) -> Edit:
        def read(hidden: Tensor) -> None:
            outputs[layer] = hidden
            if layer == last:
                raise _Stop

        return read

    with editing(blocks, {layer: reader(layer) for layer in layers}), contextlib.suppress(_Stop):
        yield outputs


def check_layer(layer: int, n_layers: int) -> None:
    """Refuse a layer that is not one of `n_layers` blocks.

    Raises:
        ModelError: it is negative, or past the last block.
    """
    if not 0 <= layer < n_layers:
        raise ModelError(f"layer {layer} does not exist; this model has layers 0 to {n_layers - 1}")


def _hook(edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        # transformers >= 5 blocks return the tensor alone, older ones and some architectures a tuple that begins with it.
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        edited = edit(hidden)
        if edited is None:
            return None
        return edited if isinstance(output, torch.Tensor) else (edited, *output[1:])

    return hook
