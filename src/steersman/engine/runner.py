"""One forward pass over rows of a slab, steered by a bound plan. Knows nothing of requests, text or sampling.

It brings its own attention masks, because rows of one batch are of different lengths: a token sees the columns of its own
row up to its own position, within the window of a sliding layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman.engine.cache import KVCache
from steersman.errors import UnsupportedModel
from steersman.models.blocks import editing, text_config
from steersman.models.language_model import LanguageModel
from steersman.steering.plan import BoundPlan

# Attention always looks at this many columns at least, and at a multiple of the step: the CPU's bfloat16 kernels then add
# up in the same order whatever the width, so that a row's result does not depend on its neighbours, bit for bit.
_MIN_COLUMNS, _COLUMN_STEP = 64, 16
_KNOWN_LAYER_TYPES = {"full_attention", "sliding_attention"}


class Runner:
    """The model's forward pass with a slab as its cache."""

    def __init__(self, model: LanguageModel) -> None:
        """Find out which masks the architecture wants.

        Raises:
            UnsupportedModel: it has layers that keep no keys and values (recurrent, chunked).
        """
        config = text_config(model.hf)
        self.model = model
        types = set(getattr(config, "layer_types", None) or ())
        if types - _KNOWN_LAYER_TYPES or getattr(config, "sliding_window_pattern", None) == "recurrent":
            odd = ", ".join(sorted(types - _KNOWN_LAYER_TYPES))
            raise UnsupportedModel(
                f"{model.name} has {odd} layers; the engine batches models with ordinary attention only"
            )
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        self._window = int(window) if window else None
        # Architectures with layer types take one mask a type; the others a single one, sliding where they have a window.
        self._mixed = "sliding_attention" in types
        self._additive = config._attn_implementation == "eager"
        self._unembedding = model.hf.get_output_embeddings()

    def new_cache(self, tokens: int = 0) -> KVCache:
        """An empty slab for this model, with room for that many tokens a row; it grows when they are more."""
        return KVCache(self.model.n_layers, _columns(tokens) if tokens else 0)

    @torch.inference_mode()
    def forward(
        self,
        cache: KVCache,
        token_ids: Int[Tensor, "rows seq"],
        positions: Int[Tensor, "rows seq"],
        keep: Int[Tensor, "rows keep"],
        bound: BoundPlan | None = None,
    ) -> Float[Tensor, "rows keep vocab"]:
        """Run the tokens through the model, extending `cache`; logits, float32, at the columns `keep` of each row.

        Args:
            cache: rows 0 to `rows - 1` belong to the rows of `token_ids`.
            token_ids: what is read; padding on the right.
            positions: where each token stands in its sequence. A row's tokens follow each other; rows may start at different
                positions. Padding may reach past the context.
            keep: for each row, the columns (of `seq`) whose logits are wanted.
            bound: what steers the rows; None for nothing.
        """
        length = _columns(int(positions.max()) + 1)
        together = positions.shape[1] > 1 and bool((positions[:, 0] == positions[0, 0]).all())
        cache.aim(positions, length, start=int(positions[0, 0]) if together else None)
        masks = self._masks(positions, length)
        # A model with learned positions has none to look up past its context.
        places = positions.clamp(max=self.model.context_tokens - 1)
        hooks = bound.hooks if bound else {}
        with self.model.lock, editing(self.model.blocks, hooks), self._unembedding_only(keep):
            logits: Tensor = self.model.hf(
                input_ids=token_ids, position_ids=places, attention_mask=masks, past_key_values=cache, use_cache=True
            ).logits
        return logits.float()

    @contextlib.contextmanager
    def _unembedding_only(self, keep: Tensor) -> Iterator[None]:
        """Let the unembedding see the wanted columns alone: it is the largest matrix, and each row wants one of many."""

        def gather(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            (hidden,) = args
            return (hidden.gather(1, keep[:, :, None].expand(-1, -1, hidden.shape[-1])),)

        handle = self._unembedding.register_forward_pre_hook(gather)
        try:
            yield
        finally:
            handle.remove()

    def _masks(self, positions: Tensor, length: int) -> Tensor | dict[str, Tensor]:
        columns = torch.arange(length, device=positions.device)
        seen = columns <= positions[:, None, :, None]
        if self._window is None:
            return self._as_mask(seen)
        near = seen & (columns > positions[:, None, :, None] - self._window)
        if self._mixed:
            return {"full_attention": self._as_mask(seen), "sliding_attention": self._as_mask(near)}
        return self._as_mask(near)

    def _as_mask(self, seen: Tensor) -> Tensor:
        if not self._additive:
            return seen
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _columns(tokens: int) -> int:
    """How many columns attention looks at so that it sees the first `tokens`."""
    return max(_MIN_COLUMNS, -(-tokens // _COLUMN_STEP) * _COLUMN_STEP)
