"""Which features fire on which token of a text or chat, and how much over the whole of it.

The first token is never read: its activations are an attention sink. Knows nothing of what features mean; an index only says
here which of them fire everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import DataError, RequestError, SaeError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, Prompt
from steersman.models.residuals import read_residuals
from steersman.models.spans import answer_span
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.model import SparseActivations, SparseAutoencoder

Read = Literal["answer", "all"]
"""Tokens that are read: `answer`, the last message of a chat where it is the assistant's, of anything else all; `all`, every
token, those of the chat template among them."""

ALWAYS_ON = 0.2
"""A feature that fires on a larger share of all tokens says little of any one of them."""


@fact
class TokenFeatures:
    """What fires on one token, strongest first."""

    position: int
    """Of the token in the sequence that the model read, counted from 0."""
    token: str
    """Its text, special tokens as they are written."""
    features: tuple[int, ...]
    activations: tuple[float, ...]


@fact
class FeatureTotal:
    """What one feature does over all tokens that were read."""

    feature: int
    sum: float
    max: float
    tokens: int
    """On how many it fires."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The features of one text. On the CPU."""

    ids: Int[Tensor, " tokens"]
    """The tokens that were read."""
    texts: tuple[str, ...]
    """Of each token, special tokens as they are written."""
    start: int
    """Position of the first of them in the sequence that the model read, counted from 0."""
    features: Int[Tensor, "tokens n"]
    """What fires at each token, strongest first."""
    activations: Float[Tensor, "tokens n"]
    """0 where fewer fire."""
    totals: tuple[FeatureTotal, ...]
    """Every feature that fires at all, by its sum, largest first."""

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[TokenFeatures]:
        """Token by token."""
        for row, text in enumerate(self.texts):
            fires = self.activations[row] > 0
            yield TokenFeatures(
                position=self.start + row,
                token=text,
                features=tuple(self.features[row][fires].tolist()),
                activations=tuple(self.activations[row][fires].tolist()),
            )


def inspect(
    model: LanguageModel,
    sae: SparseAutoencoder,
    content: Prompt,
    *,
    n_per_token: int | None = None,
    read: Read = "all",
    index: FeatureIndex | None = None,
    max_density: float = ALWAYS_ON,
) -> Inspection:
    """Run a text or chat through the model once and encode the residual stream at the SAE's layer.

    Args:
        model: what the SAE was trained on.
        sae: of any architecture.
        content: a text as it stands, or a chat through the model's template; one that ends with a user's message is read up to
            where the answer would begin.
        n_per_token: features kept at each token; None keeps all. The totals count all either way.
        read: which tokens.
        index: of the same SAE; leaves out features that fire on more than `max_density` of all tokens.
        max_density: only used with `index`.

    Raises:
        SaeError: an SAE or index that does not fit, or `n_per_token` below 1.
        RequestError: an empty text, or a chat for a model without a chat template.
        DataError: too long for the model, or nothing to read after the first token.
    """
    if n_per_token is not None and n_per_token < 1:
        raise SaeError(f"n_per_token must be at least 1, not {n_per_token}")
    sae.check_fits(model.ref)
    ids, start, stop = read_tokens(model, content, read)
    found = encode_rows(model, sae, [(ids, start, stop)])[0]
    if index is not None:
        found = without(found, always_on(index, sae, max_density))
    n = min(found.ids.shape[1], n_per_token or found.ids.shape[1])
    return Inspection(
        ids=torch.tensor(ids[start:stop]),
        texts=tuple(model.tokenizer.decode([token]) for token in ids[start:stop]),
        start=start,
        features=found.ids[:, :n],
        activations=found.values[:, :n],
        totals=_totals(found),
    )


def read_tokens(model: LanguageModel, content: Prompt, read: Read) -> tuple[list[int], int, int]:
    """Token ids of a text or chat, and where what is to be read of them starts and stops; it never starts before 1.

    Raises:
        RequestError: an empty text, or a chat that cannot be written.
        DataError: an unknown `read`, or nothing to read after the first token.
    """
    if read not in get_args(Read):
        raise DataError(f"unknown tokens to read {read!r}; use one of {', '.join(get_args(Read))}")
    if isinstance(content, str):
        if not content.strip():
            raise RequestError("the text is empty; write something to read")
        ids, start, stop = model.encode(content), 1, None
    elif not content or content[-1]["role"] != "assistant":
        ids, start, stop = model.encode(content), 1, None
    else:
        if not content[-1]["content"].strip():
            raise RequestError("the assistant's answer is empty; write it, or leave the message out")
        ids, start, stop = answer_span(model, content)
        if read == "all":
            start, stop = 1, None
    start, stop = max(start, 1), len(ids) if stop is None else stop
    if start >= stop:
        raise DataError("there is nothing to read after the first token; write a longer text")
    return ids, start, stop


def encode_rows(
    model: LanguageModel, sae: SparseAutoencoder, spans: Sequence[tuple[Sequence[int], int, int]]
) -> list[SparseActivations]:
    """What fires on the tokens `start` to `stop` of each sequence, largest first; on the CPU.

    Raises:
        DataError: a sequence is too long for the model.
    """
    layer = sae.config.layer
    residuals = read_residuals(model, [ids for ids, _, _ in spans], [layer])
    found = []
    for (_, start, stop), hidden in zip(spans, residuals, strict=True):
        # The first token is not among the residuals.
        fired = sae.encode_sparse(hidden[layer][start - 1 : stop - 1].to(sae.device))
        found.append(SparseActivations(fired.ids.cpu(), fired.values.cpu()))
    return found


def always_on(index: FeatureIndex, sae: SparseAutoencoder, max_density: float = ALWAYS_ON) -> Int[Tensor, " features"]:
    """Features that fire on more than `max_density` of all tokens.

    Raises:
        SaeError: the index is of another SAE.
    """
    if index.facts.sae.weights_hash != sae.weights_hash:
        raise SaeError(f"the index belongs to the SAE {index.facts.sae.id}, not to this one; index this one")
    return (index.density > max_density).nonzero().squeeze(1)


def without(found: SparseActivations, features: Int[Tensor, " features"]) -> SparseActivations:
    """The same without some features; what is left keeps its order, zeros behind it."""
    values = found.values.masked_fill(torch.isin(found.ids, features), 0.0)
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return SparseActivations(found.ids.gather(-1, order), values)


def per_feature(found: SparseActivations) -> tuple[Int[Tensor, " m"], Float[Tensor, "m 3"]]:
    """Every feature that fires on some token, in the order of their numbers: sum, maximum and number of tokens of each."""
    fires = found.values > 0
    ids, places = torch.unique(found.ids[fires], return_inverse=True)
    values = found.values[fires]
    sums = torch.zeros(len(ids)).index_add(0, places, values)
    largest = torch.zeros(len(ids)).scatter_reduce(0, places, values, "amax")
    return ids, torch.stack([sums, largest, places.bincount(minlength=len(ids)).float()], dim=1)


def _totals(found: SparseActivations) -> tuple[FeatureTotal, ...]:
    ids, facts = per_feature(found)
    order = facts[:, 0].argsort(descending=True, stable=True)
    return tuple(
        FeatureTotal(feature=feature, sum=total, max=largest, tokens=int(count))
        for feature, (total, largest, count) in zip(ids[order].tolist(), facts[order].tolist(), strict=True)
    )
