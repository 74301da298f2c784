"""The upper part of a model as a differentiable function of what is added to the residual stream at one layer.

The blocks up to that layer run once a text; what they put out is kept, and every later pass starts from there. Parameters need
no gradient, so the backward pass costs about as much as the forward one. Knows nothing of features or optimisers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from steersman.models.blocks import editing, reading
from steersman.models.language_model import LanguageModel

_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Reading:
    """A text of which some tokens are to be predicted: those from `start` on."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch of readings that the lower blocks have been through."""

    ids: Int[Tensor, "rows seq"]
    mask: Bool[Tensor, "rows seq"]
    hidden: Float[Tensor, "rows seq d_model"]
    """Output of the block at the layer."""
    wanted: Bool[Tensor, "rows seq"]
    """Columns whose next token is predicted."""

    @property
    def targets(self) -> Int[Tensor, " n"]:
        """The tokens that are predicted, row by row."""
        return self.ids.roll(-1, dims=1)[self.wanted]


class UpperModel:
    """Predicts answers with something added at one layer."""

    def __init__(self, model: LanguageModel, layer: int) -> None:
        self.model, self.layer = model, layer

    @torch.no_grad()
    def prepare(self, readings: Sequence[Reading], batch_tokens: int = _BATCH_TOKENS) -> list[Prepared]:
        """Run the lower blocks over texts, in batches of similar length."""
        batches: list[list[Reading]] = []
        for reading_ in sorted(readings, key=lambda each: len(each.ids)):
            if batches and (len(batches[-1]) + 1) * len(reading_.ids) <= batch_tokens:
                batches[-1].append(reading_)
            else:
                batches.append([reading_])
        return [self.together(batch) for batch in batches]

    @torch.no_grad()
    def together(self, batch: Sequence[Reading]) -> Prepared:
        """Run the lower blocks over texts as one batch, in the order given."""
        width = max(len(each.ids) for each in batch)
        ids = torch.tensor([[*each.ids, *[0] * (width - len(each.ids))] for each in batch])
        columns = torch.arange(width)
        lengths = torch.tensor([[len(each.ids)] for each in batch])
        starts = torch.tensor([[each.start] for each in batch])
        mask, wanted = columns < lengths, (columns >= starts - 1) & (columns < lengths - 1)
        ids, mask, wanted = (tensor.to(self.model.device) for tensor in (ids, mask, wanted))
        with self.model.lock, reading(self.model.blocks, [self.layer]) as outputs:
            self.model.hf(input_ids=ids, attention_mask=mask, use_cache=False)
        return Prepared(ids, mask, outputs[self.layer].clone(), wanted)

    def logits(
        self, batch: Prepared, added: Float[Tensor, " d_model"] | Float[Tensor, "rows seq d_model"]
    ) -> Float[Tensor, "n vocab"]:
        """Logits, float32, for each wanted token, with `added` at every token but the first; differentiable in it."""
        push = added.expand_as(batch.hidden).clone()
        push[:, 0] = 0.0  # The first token is an attention sink.
        edited = (batch.hidden.float() + push).to(batch.hidden.dtype)
        # The lower blocks pass on what they get; what comes out of the last of them is replaced.
        with (
            self.model.lock,
            _skipping(self.model.blocks[: self.layer]),
            editing(self.model.blocks, {self.layer: lambda _: edited}),
            _predicting(self.model.hf.get_output_embeddings(), batch.wanted),
        ):
            logits: Tensor = self.model.hf(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        return logits[0].float()

    def logprobs(
        self, batch: Prepared, added: Float[Tensor, " d_model"] | Float[Tensor, "rows seq d_model"]
    ) -> Float[Tensor, " n"]:
        """Log-probability of each wanted token, with `added` at every token but the first; differentiable in it."""
        return -F.cross_entropy(self.logits(batch, added), batch.targets, reduction="none")


@contextlib.contextmanager
def _skipping(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let blocks do nothing while the block runs."""
    passed: list[nn.Module] = []

    def through(block: nn.Module) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            return hidden_states

        return forward

    try:
        for block in blocks:
            block.forward = through(block)
            passed.append(block)
        yield
    finally:
        for block in passed:
            del block.forward


@contextlib.contextmanager
def _predicting(unembedding: nn.Module, wanted: Bool[Tensor, "rows seq"]) -> Iterator[None]:
    """Let the unembedding see the wanted columns alone, as one row."""
    handle = unembedding.register_forward_pre_hook(lambda _module, args: (args[0][wanted][None],))
    try:
        yield
    finally:
        handle.remove()
