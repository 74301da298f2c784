"""Find features: by meaning, by token, by neighbour; and order given ones by a query. Reads the index alone, no SAE or model.

Search by meaning compares the query's embedding with those of a feature's contexts and label:

    score = 0.75 * (cos(query, contexts) - cos(neutral, contexts)) + 0.25 * (cos(query, label) - cos(neutral, label))

`neutral` is the mean embedding of texts that ask for nothing in particular. Without it, features whose contexts are like
everything (short words, line breaks) come first for most queries. What a feature lacks, a label or contexts, adds 0; what the
whole index lacks leaves its weight to the other. Literal matches of words are left to `search_token`: on top of
the embeddings of labels, which quote the words that features fire on, they improved nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.errors import RequestError, SaeError
from steersman.facts import fact
from steersman.models.sentence_encoder import TextEncoder
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.index.inspect import ALWAYS_ON

LABEL_WEIGHT = 0.25
"""Share of the label in the score; contexts have the rest."""

_SLACK = 64
_CHUNK_TOKENS = 1 << 24


@fact
class Hit:
    """A feature that a query found, and why."""

    feature: int
    score: float
    """0 for what has nothing to do with the query; 0.3 and more is a good match."""
    label: str | None
    density: float
    """Share of all tokens where it fires."""
    label_cosine: float | None
    """Between query and label; None where there is no label."""
    context_cosine: float | None
    """Between query and contexts; None where there are none."""


@fact
class Firing:
    """A feature that fires on a token."""

    feature: int
    share: float
    """Of its contexts, those where this token is the strongest."""
    label: str | None
    density: float


@fact
class Promotion:
    """A feature that makes a token likelier."""

    feature: int
    rank: int
    """Of the token among those that the feature promotes, counted from 1."""
    label: str | None
    density: float


@fact
class TokenHits:
    """What a token has to do with features."""

    fires: tuple[Firing, ...]
    """Features whose contexts are strongest on it, largest share first."""
    promotes: tuple[Promotion, ...]
    """Features that make it likelier, best rank first."""


@fact
class Neighbour:
    """A feature that writes nearly the same as another."""

    feature: int
    cosine: float
    """Between the decoder rows."""
    label: str | None
    density: float


@torch.no_grad()
def search(
    index: FeatureIndex,
    query: str,
    encoder: TextEncoder,
    *,
    n: int = 10,
    min_density: float | None = None,
    max_density: float | None = ALWAYS_ON,
) -> list[Hit]:
    """The features nearest in meaning to a query, best first; equal scores in the order of their numbers.

    Args:
        index: with embeddings.
        query: a word, a phrase or a sentence.
        encoder: the one that the index was embedded with.
        n: hits at most.
        min_density: leaves out features that fire on a smaller share of all tokens; None, those that never fire.
        max_density: leaves out features that fire on a larger share; None keeps them.

    Raises:
        RequestError: an empty query.
        SaeError: an index without embeddings or of another encoder, or `n` below 1.
    """
    if n < 1:
        raise SaeError(f"the number of hits must be at least 1, not {n}")
    asked, excess = _ask(index, query, encoder)
    wanted = _within(index.density, min_density, max_density)
    rough = torch.zeros(len(index))
    for weight, embeddings in _parts(index):
        rough += weight * (embeddings @ excess.to(embeddings.dtype)).float()
    rough.masked_fill_(~wanted, -torch.inf)
    # Ranked roughly in the embeddings' own number format, then those in front once more in float32.
    best = rough.topk(min(4 * n + _SLACK, int(wanted.sum()))).indices
    return _hits(index, best.sort().values, asked, excess)[:n]


@torch.no_grad()
def rerank(index: FeatureIndex, features: Sequence[int], query: str, encoder: TextEncoder) -> list[Hit]:
    """The given features, all of them, ordered by a query as `search` does; equal scores stay in the order given.

    Raises:
        RequestError: an empty query.
        SaeError: a feature that does not exist, an index without embeddings or of another encoder.
    """
    for feature in features:
        index.check(feature)
    asked, excess = _ask(index, query, encoder)
    return _hits(index, torch.tensor(features, dtype=torch.long), asked, excess)


def search_token(index: FeatureIndex, text: str, tokenizer: Any, *, n: int = 10) -> TokenHits:
    """Features that have to do with a token: those that fire on it, and those that promote it.

    Any case and a space in front count as the same token. A word of several tokens is looked for as the whole sequence where
    features fire, and by its first token where they promote. Features that never fire are left out.

    Args:
        index: with or without embeddings.
        text: a word, a part of one, a sign or a special token.
        tokenizer: of the model.
        n: features at most in each list.

    Raises:
        RequestError: an empty text, or one that the tokenizer does not know.
        SaeError: `n` below 1.
    """
    if n < 1:
        raise SaeError(f"the number of hits must be at least 1, not {n}")
    forms = _forms(text, tokenizer)
    share, live = _peak_share(index, forms), index.density > 0
    share = share.masked_fill(~live, 0.0)
    found = share.argsort(descending=True, stable=True)[:n]
    first = torch.tensor(sorted({form[0] for form in forms}))
    matches = torch.isin(index.promoted, first) & live.unsqueeze(1)
    ranks = torch.where(matches.any(1), matches.int().argmax(1), index.promoted.shape[1])
    promoting = ranks.argsort(stable=True)[:n]
    return TokenHits(
        fires=tuple(
            Firing(feature=feature, share=float(share[feature]), **_about(index, feature))
            for feature in found.tolist()
            if share[feature] > 0
        ),
        promotes=tuple(
            Promotion(feature=feature, rank=int(ranks[feature]) + 1, **_about(index, feature))
            for feature in promoting.tolist()
            if ranks[feature] < index.promoted.shape[1]
        ),
    )


def neighbours(index: FeatureIndex, feature: int, *, n: int | None = None) -> list[Neighbour]:
    """Features whose decoder rows point the same way, nearest first; as many as the index holds, or `n`.

    Raises:
        SaeError: no such feature.
    """
    index.check(feature)
    pairs = zip(index.neighbours[feature].tolist()[:n], index.cosines[feature].tolist()[:n], strict=True)
    return [Neighbour(feature=other, cosine=cosine, **_about(index, other)) for other, cosine in pairs]


def _ask(
    index: FeatureIndex, query: str, encoder: TextEncoder
) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """The query's embedding, and what it has beyond the neutral one."""
    if not query.strip():
        raise RequestError("the query is empty; say what to look for")
    parts = _parts(index)
    if not parts:
        raise SaeError("the index holds no embeddings to search by meaning; embed it first (embed_index)")
    name, width = index.facts.encoder, parts[0][1].shape[1]
    if (name is not None and name != encoder.name) or width != encoder.width:
        raise SaeError(
            f"the index was embedded with {name} ({width} wide), the query with {encoder.name} ({encoder.width}); use the same"
        )
    asked = encoder.encode([query])[0]
    return asked, asked - encoder.neutral


def _parts(index: FeatureIndex) -> list[tuple[float, Float[Tensor, "features width"]]]:
    """The embeddings that the index has and the weight of each; the weights sum to 1."""
    both = [(1 - LABEL_WEIGHT, index.context_embeddings), (LABEL_WEIGHT, index.label_embeddings)]
    there = [(weight, embeddings) for weight, embeddings in both if embeddings is not None]
    total = sum(weight for weight, _ in there)
    return [(weight / total, embeddings) for weight, embeddings in there]


def _within(density: Float[Tensor, " n"], low: float | None, high: float | None) -> Bool[Tensor, " n"]:
    wanted = density > 0
    if low is not None:
        wanted &= density >= low
    if high is not None:
        wanted &= density <= high
    return wanted


def _hits(
    index: FeatureIndex, features: Int[Tensor, " m"], asked: Float[Tensor, " width"], excess: Float[Tensor, " width"]
) -> list[Hit]:
    """Hits of all the features, best first, in full precision."""
    scores = torch.zeros(len(features))
    for weight, embeddings in _parts(index):
        scores += weight * _products(embeddings[features], excess)
    order = scores.argsort(descending=True, stable=True)
    chosen = features[order]
    cosines = [_cosines(embeddings, chosen, asked) for embeddings in (index.label_embeddings, index.context_embeddings)]
    return [
        Hit(feature=feature, score=score, label_cosine=label, context_cosine=context, **_about(index, feature))
        for feature, score, label, context in zip(chosen.tolist(), scores[order].tolist(), *cosines, strict=True)
    ]


def _cosines(embeddings: Tensor | None, features: Tensor, asked: Tensor) -> list[float | None]:
    if embeddings is None:
        return [None] * len(features)
    rows = embeddings[features]
    there = rows.any(1).tolist()
    return [cosine if has else None for cosine, has in zip(_products(rows, asked).tolist(), there, strict=True)]


def _products(rows: Float[Tensor, "m width"], vector: Float[Tensor, " width"]) -> Float[Tensor, " m"]:
    # Not a matrix product: its last bits depend on where a row stands, and a feature's score shall not.
    return (rows.float() * vector).sum(1)


def _about(index: FeatureIndex, feature: int) -> dict[str, Any]:
    label = index.labels[feature]
    return {"label": None if label is None else label.text, "density": float(index.density[feature])}


def _forms(text: str, tokenizer: Any) -> list[tuple[int, ...]]:
    """The ways in which the tokenizer writes a token: with and without a space in front, in lower, title and upper case."""
    if not text:
        raise RequestError("the token is empty; write a word, a sign or a special token")
    bare = text.strip()
    cases = (bare, bare.lower(), bare.capitalize(), bare.upper()) if bare else ()
    written = (text, *cases, *(f" {case}" for case in cases))
    forms = [tuple(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in written]
    unknown = tokenizer.unk_token_id
    known = [form for form in dict.fromkeys(forms) if form and (unknown is None or unknown not in form)]
    if not known:
        raise RequestError(f"the model's tokenizer does not know {text!r}; try another spelling")
    return known


def _peak_share(index: FeatureIndex, forms: Sequence[tuple[int, ...]]) -> Float[Tensor, " features"]:
    """Of each feature's contexts, the share whose strongest token belongs to one of the forms."""
    _, contexts, width = index.context_tokens.shape
    if not contexts * width:
        return torch.zeros(len(index))
    shares = []
    for start in range(0, len(index), size := max(1, _CHUNK_TOKENS // (contexts * width))):
        tokens = index.context_tokens[start : start + size]
        peaks = index.context_activations[start : start + size].argmax(2, keepdim=True)
        matched = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        for form in forms:
            # The strongest token may stand anywhere in a word of several.
            for place in range(len(form)):
                starts = peaks - place
                spots = starts + torch.arange(len(form))
                inside = (spots >= 0) & (spots < width)
                same = tokens.gather(2, spots.clamp(0, width - 1)) == torch.tensor(form, dtype=tokens.dtype)
                matched |= (inside & same).all(2)
        there = tokens[:, :, 0] >= 0
        shares.append((matched & there).sum(1) / there.sum(1).clamp(min=1))
    return torch.cat(shares)
