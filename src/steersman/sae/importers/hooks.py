"""Turn other libraries' names of a place in the model into our layer: the output of decoder block i, counted from 0.

This is the border; behind it only our convention exists.
"""

from __future__ import annotations

import re

from steersman.errors import SaeError

_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
# Module names of transformers: what such a module puts out is the residual stream after the block.
_MODULE = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)[._](\d+)(?:\.output)?")
_EMBEDDING = {"hook_embed", "embed_tokens", "embedding", "wte", "embed"}


def layer_of(hook: str) -> int:
    """Our layer for a hook or module name: `blocks.9.hook_resid_post`, `model.layers.9`, `transformer.h.9`: 9.

    `blocks.9.hook_resid_pre` is what block 9 reads, which is what block 8 puts out: 8.

    Raises:
        SaeError: the place is not the residual stream between two blocks.
    """
    if found := _TRANSFORMER_LENS.fullmatch(hook):
        block = int(found[1]) - (found[2] == "pre")
        if block >= 0:
            return block
    elif found := _MODULE.fullmatch(hook):
        return int(found[1])
    if found or hook.split(".")[-1] in _EMBEDDING:
        raise SaeError(
            f"an SAE on {hook!r} reads the embeddings, before the first block; steersman edits what blocks put out"
        )
    raise SaeError(
        f"an SAE on {hook!r} does not read the residual stream between two blocks; choose one on a block's output "
        "(hook_resid_post, hook_resid_pre, layers.N)"
    )
