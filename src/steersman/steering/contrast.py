"""What the residual stream holds where pairs differ: which tokens of a pair are read, and their averages per layer.

Knows pairs and models; not what a method makes of the averages.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, Message, Prompt
from steersman.models.residuals import ModelProfile, read_residuals
from steersman.models.spans import answer_span
from steersman.steering.edits import Add
from steersman.steering.pairs import Pair, canonical, distinct
from steersman.steering.vector import Vector

Read = Literal["answer", "last", "all"]
"""Tokens that are averaged: `answer`, the last message of a chat (of a text: all); `last`, its last token; `all`, every
token up to there. The first token of a sequence is never read: its activations are an attention sink."""

_CHUNK_PAIRS = 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Mean residuals of the tokens read, per layer and pair; float32 on the CPU."""

    positive: Mapping[int, Float[Tensor, "pairs d_model"]]
    negative: Mapping[int, Float[Tensor, "pairs d_model"]]
    mean_norms: Mapping[int, float]
    """Mean residual norm of each layer."""
    data: dict[str, JsonValue]
    """What was read, for the recipe: counts, hash of the pairs, layers, tokens."""

    def differences(self, layer: int) -> Float[Tensor, "pairs d_model"]:
        """Positive minus negative."""
        return self.positive[layer] - self.negative[layer]

    def edit(self, layer: int, move: Float[Tensor, " d_model"]) -> Add:
        """The edit that adds `move` at strength 1 of its recipe, its length stated in mean residual norms.

        Raises:
            DataError: the move is nothing, so the pairs tell no direction.
        """
        strength = float(move.norm()) / self.mean_norms[layer]
        if strength < 1e-6:
            raise DataError(f"the pairs do not differ at layer {layer} on average; are their sides mixed up?")
        return Add(layer=layer, vector=Vector(move), strength=strength)


def read_contrast(
    model: LanguageModel, pairs: Sequence[Pair], *, profile: ModelProfile, layers: Sequence[int], read: Read = "answer"
) -> Contrast:
    """Run both sides of every pair through the model and average the residual stream over the tokens to read.

    Repeated pairs are read once; how many were dropped is logged and noted in `Contrast.data`.

    Raises:
        DataError: fewer than two different pairs, a side too long or too short to read, no layers, chats for a model
            without a chat template, or another model's profile.
        ModelError: a layer that the model does not have.
    """
    if profile.weights_hash != model.ref.weights_hash:
        raise DataError(f"the profile belongs to another model than {model.name}; measure it again")
    if read not in get_args(Read):
        raise DataError(f"unknown tokens to read {read!r}; use one of {', '.join(get_args(Read))}")
    kept = distinct(pairs)
    layers = sorted(set(layers))
    if len(kept) < len(pairs):
        _log.warning("dropped %d repeated pairs of %d", len(pairs) - len(kept), len(pairs))
    spans = [_located(model, pair, number, read) for number, pair in enumerate(kept, 1)]
    sides: tuple[list[dict[int, Tensor]], list[dict[int, Tensor]]] = ([], [])
    # In chunks: only means are kept, so memory does not grow with all the tokens of a large set.
    for start in range(0, len(spans), _CHUNK_PAIRS):
        flat = [span for pair in spans[start : start + _CHUNK_PAIRS] for span in pair]
        residuals = read_residuals(model, [span.ids for span in flat], layers)
        for index, (span, hidden) in enumerate(zip(flat, residuals, strict=True)):
            # The first token is not among the residuals: its row would be -1.
            rows = slice(span.start - 1, span.stop - 1)
            sides[index % 2].append({layer: hidden[layer][rows].float().mean(0).cpu() for layer in layers})
    positive, negative = ({layer: torch.stack([means[layer] for means in side]) for layer in layers} for side in sides)
    data: dict[str, JsonValue] = {
        "pairs": len(kept),
        "duplicates_dropped": len(pairs) - len(kept),
        "pairs_sha256": hashlib.sha256(canonical([[p.positive, p.negative] for p in kept]).encode()).hexdigest(),
        "layers": list(layers),
        "read": read,
    }
    return Contrast(positive, negative, {layer: profile.mean_norms[layer] for layer in layers}, data)


@fact
class Span:
    """A side as tokens, cut after the answer, and which of them are read."""

    ids: tuple[int, ...]
    start: int
    stop: int


def locate(model: LanguageModel, side: Prompt, read: Read) -> Span:
    """Tokens of one side, and the span of them that `read` means.

    Raises:
        DataError: too long for the model, nothing to read beyond the first token, or a chat for a model without template.
    """
    ids, start = (model.encode(side), 1) if isinstance(side, str) else _answer(model, side)
    if len(ids) > model.context_tokens:
        raise DataError(
            f"{len(ids)} tokens are more than the {model.context_tokens} that {model.name} reads; shorten it"
        )
    start = {"answer": max(start, 1), "last": max(len(ids) - 1, 1), "all": 1}[read]
    if start >= len(ids):
        raise DataError("there is nothing to read after the first token; write a longer text")
    return Span(ids=tuple(ids), start=start, stop=len(ids))


def _answer(model: LanguageModel, chat: Sequence[Message]) -> tuple[list[int], int]:
    """Tokens of a chat up to the end of its last message, and where that message begins."""
    if not model.is_chat:
        raise DataError(f"{model.name} has no chat template; write the pairs as plain texts")
    ids, start, stop = answer_span(model, chat)
    # Cut after the answer: what the template writes there is not the answer's.
    return ids[:stop], start


def _located(model: LanguageModel, pair: Pair, number: int, read: Read) -> tuple[Span, Span]:
    try:
        return locate(model, pair.positive, read), locate(model, pair.negative, read)
    except DataError as error:
        raise DataError(f"pair {number}: {error}") from error
