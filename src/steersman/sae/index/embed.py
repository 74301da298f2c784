"""Embed the labels and contexts of an index with a sentence encoder, so that features can be searched by meaning.

Works through the features block by block: memory grows with the embeddings alone. Knows nothing of how they are searched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.errors import SaeError
from steersman.models.sentence_encoder import TextEncoder
from steersman.sae.index.facts import NO_TOKEN, FeatureIndex

CONTEXTS = 8
"""Contexts of a feature that are embedded, strongest first."""

BEFORE, AFTER = 5, 2
"""Tokens of a context that are embedded around the one where the feature fires most: what is far from it is mostly chance."""

_BLOCK = 128
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def embed_index(
    index: FeatureIndex,
    encoder: TextEncoder,
    tokenizer: Any,
    progress: Callable[[int, int], None] | None = None,
    *,
    contexts: int = CONTEXTS,
) -> FeatureIndex:
    """The index with `label_embeddings` and `context_embeddings`, and the encoder's name among its facts.

    A context is embedded as the text around its strongest token; a feature's contexts as the mean of theirs, brought back to
    norm 1. Features without label, or whose contexts hold no text, get zeros. Embeddings are kept in float16: rounding moves
    a cosine by less than 0.001, and a search reads half as many bytes.

    Args:
        index: with labels, where it has any.
        encoder: the same one is needed to search.
        tokenizer: of the model whose tokens the contexts are.
        progress: called with (features done, features in all) every few hundred texts.
        contexts: how many of each feature, strongest first.

    Raises:
        SaeError: fewer than one context.
    """
    if contexts < 1:
        raise SaeError(f"contexts to embed must be at least 1, not {contexts}")
    n = len(index)
    labels, spoken = (torch.zeros(n, encoder.width, dtype=torch.float16) for _ in range(2))
    for start in range(0, n, _BLOCK):
        rows = range(start, min(start + _BLOCK, n))
        named = [[label.text] if (label := index.labels[row]) else [] for row in rows]
        read = [context_texts(index, row, tokenizer)[:contexts] for row in rows]
        both = _means([*named, *read], encoder).to(torch.float16)
        labels[start : rows.stop], spoken[start : rows.stop] = both[: len(rows)], both[len(rows) :]
        if progress is not None:
            progress(rows.stop, n)
    facts = replace(index.facts, encoder=encoder.name)
    return replace(index, facts=facts, label_embeddings=labels, context_embeddings=spoken)


def context_texts(index: FeatureIndex, feature: int, tokenizer: Any) -> list[str]:
    """The contexts of a feature as plain texts around the strongest token, strongest first.

    Special tokens and characters cut in half are left out, white space is squeezed, and what is then empty is dropped.

    Raises:
        SaeError: no such feature.
    """
    contexts = index.contexts(feature)
    found = []
    for row, peak in zip(contexts.tokens, contexts.activations.argmax(1).tolist(), strict=True):
        window = row[max(0, peak - BEFORE) : peak + AFTER + 1]
        text: str = tokenizer.decode(window[window != NO_TOKEN].tolist(), skip_special_tokens=True)
        found.append(" ".join(text.replace(_REPLACEMENT, "").split()))
    return [text for text in found if text]


def _means(groups: Sequence[Sequence[str]], encoder: TextEncoder) -> Float[Tensor, "groups width"]:
    """The mean embedding of each group of texts, of norm 1; zeros for an empty group. Equal texts are embedded once."""
    rows = {
        text: row for row, text in enumerate(dict.fromkeys(text for group in groups for text in group if text.strip()))
    }
    made = encoder.encode(list(rows))
    owners = [(number, rows[text]) for number, group in enumerate(groups) for text in group if text in rows]
    if not owners:
        return torch.zeros(len(groups), encoder.width)
    into, out_of = torch.tensor(owners).T
    return F.normalize(torch.zeros(len(groups), encoder.width).index_add(0, into, made[out_of]), dim=1)
