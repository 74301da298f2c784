"""Features that tell two sets of texts or chats apart. Knows nothing of labels, files or search.

Each text becomes one number a feature: the mean of its activation over the tokens read, or the maximum. Two statistics
compare the numbers of both sets:

- `score`, a standardised difference of the means, `(mean_a - mean_b) / (s + s0)`, where `s` is the feature's pooled standard
  deviation and `s0` the median of `s` over all features that fire. `s0` keeps features that hardly fire, and hardly vary,
  from coming first (Tusher et al., PNAS 98:5116, 2001, with the median for their tuned constant).
- `auc`, the chance that a text of the first set has the larger number, ties counted as half: 1 and 0 tell all texts apart,
  0.5 none.

The score orders, as the auc of small sets is the same for many features. Swapping the sets changes the sign of the score and
turns the auc into 1 - auc. What fires alike in every text of both sets has score 0 and auc 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import DataError, RequestError, SaeError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, Prompt
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.index.inspect import ALWAYS_ON, Read, always_on, encode_rows, per_feature, read_tokens
from steersman.sae.model import SparseAutoencoder

MIN_TEXTS = 2
"""Of each set: fewer have no spread."""

PerText = Literal["mean", "max"]
"""How the activations of a feature over a text become one number."""

_CHUNK = 32


@fact
class Difference:
    """How one feature tells the sets apart; `positive` is the first set."""

    feature: int
    score: float
    """Standardised difference of the means, above 0 where the first set has more."""
    auc: float
    """Chance that a text of the first set has more."""
    positive_mean: float
    """Over the texts of the set, of the number that stands for each."""
    negative_mean: float
    positive_texts: int
    """Texts of the set where it fires at all."""
    negative_texts: int


@dataclass(frozen=True, slots=True)
class Contrast:
    """What tells two sets apart, in both directions."""

    positive: tuple[Difference, ...]
    """Features of the first set, highest score first."""
    negative: tuple[Difference, ...]
    """Features of the second set, lowest score first."""
    n_positive: int
    """Texts of the first set."""
    n_negative: int


def contrast(
    model: LanguageModel,
    sae: SparseAutoencoder,
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    *,
    n: int = 20,
    read: Read = "answer",
    per_text: PerText = "mean",
    index: FeatureIndex | None = None,
) -> Contrast:
    """Run both sets through the model and rank the features by how they differ.

    Repeated texts of a set count once. Ties are broken by the feature's number.

    Args:
        model: what the SAE was trained on.
        sae: of any architecture.
        positives: texts or chats that show something.
        negatives: texts or chats that do not, and are otherwise as like the others as can be.
        n: features at most in each direction.
        read: which tokens of a chat; of a text all but the first are read.
        per_text: what stands for a text.
        index: of the same SAE; leaves out features that fire nearly everywhere (`ALWAYS_ON`).

    Raises:
        DataError: a set with fewer than two different texts, an empty or too long text, or two equal sets.
        SaeError: an SAE or index that does not fit, or `n` below 1.
    """
    if n < 1:
        raise SaeError(f"the number of features must be at least 1, not {n}")
    if per_text not in get_args(PerText):
        raise DataError(f"unknown number for a text {per_text!r}; use one of {', '.join(get_args(PerText))}")
    sae.check_fits(model.ref)
    left_out = None if index is None else always_on(index, sae, ALWAYS_ON)
    sets = [_spans(model, texts, name, read) for name, texts in (("first", positives), ("second", negatives))]
    if {ids for ids, _, _ in sets[0]} == {ids for ids, _, _ in sets[1]}:
        raise DataError("both sets hold the same texts; there is nothing to tell apart")
    read_of = [_read(model, sae, spans, per_text) for spans in sets]
    features = torch.unique(torch.cat([ids for texts in read_of for ids, _ in texts]))
    if left_out is not None:
        features = features[~torch.isin(features, left_out)]
    return _compare(features, *(_table(texts, features) for texts in read_of), n=n)


def _compare(
    features: Int[Tensor, " m"], positive: Float[Tensor, "a m"], negative: Float[Tensor, "b m"], *, n: int
) -> Contrast:
    scores, auc = standardised_difference(positive, negative), area_under_curve(positive, negative)
    facts = torch.stack(
        [scores, auc, positive.mean(0), negative.mean(0), (positive > 0).sum(0), (negative > 0).sum(0)], dim=1
    )
    ranked = []
    for sign in (1, -1):
        order = (sign * scores).argsort(descending=True, stable=True)[:n]
        order = order[sign * scores[order] > 0]
        ranked.append(
            tuple(
                Difference(
                    feature=feature,
                    score=score,
                    auc=chance,
                    positive_mean=first,
                    negative_mean=second,
                    positive_texts=int(fired),
                    negative_texts=int(others),
                )
                for feature, (score, chance, first, second, fired, others) in zip(
                    features[order].tolist(), facts[order].tolist(), strict=True
                )
            )
        )
    return Contrast(ranked[0], ranked[1], len(positive), len(negative))


def standardised_difference(a: Float[Tensor, "a m"], b: Float[Tensor, "b m"]) -> Float[Tensor, " m"]:
    """`(mean_a - mean_b) / (s + s0)` for every column, see the head of this module; 0 where nothing differs."""
    difference = a.mean(0) - b.mean(0)
    squares = ((a - a.mean(0)) ** 2).sum(0) + ((b - b.mean(0)) ** 2).sum(0)
    spread = (squares / (len(a) + len(b) - 2)).sqrt()
    floor = spread.median() if len(spread) else spread.sum()
    # Without any spread at all the size of the difference itself is what is left to rank by.
    return difference / (spread + (floor if floor > 0 else 1.0))


def area_under_curve(a: Float[Tensor, "a m"], b: Float[Tensor, "b m"]) -> Float[Tensor, " m"]:
    """For every column, the chance that a row of `a` holds more than a row of `b`, ties counted as half."""
    ordered, wanted = b.T.contiguous().sort(dim=1).values, a.T.contiguous()
    below, upto = (torch.searchsorted(ordered, wanted, right=right).float() for right in (False, True))
    return (below + upto).mean(1) / (2 * len(b))


def _spans(
    model: LanguageModel, texts: Sequence[Prompt], name: str, read: Read
) -> list[tuple[tuple[int, ...], int, int]]:
    """Each different text of a set as tokens, and which of them are read."""
    if isinstance(texts, str):
        raise DataError(f"the {name} set is one text; give a list of texts or chats")
    spans = []
    for number, content in enumerate(texts, 1):
        try:
            ids, start, stop = read_tokens(model, content, read)
        except (DataError, RequestError) as error:
            raise DataError(f"text {number} of the {name} set: {error}") from error
        if len(ids) > model.context_tokens:
            raise DataError(
                f"text {number} of the {name} set has {len(ids)} tokens; {model.name} reads {model.context_tokens}: cut it"
            )
        spans.append((tuple(ids), start, stop))
    spans = list(dict.fromkeys(spans))
    if len(spans) < MIN_TEXTS:
        raise DataError(
            f"the {name} set holds {len(spans)} different texts; give at least {MIN_TEXTS}, twenty or more are better"
        )
    return spans


def _read(
    model: LanguageModel, sae: SparseAutoencoder, spans: Sequence[tuple[tuple[int, ...], int, int]], per_text: PerText
) -> list[tuple[Tensor, Tensor]]:
    """For each text the features that fire and the number that each has there."""
    found = []
    # In chunks: memory holds the residuals of some texts, never of all.
    for first in range(0, len(spans), _CHUNK):
        chunk = spans[first : first + _CHUNK]
        for (_, start, stop), fired in zip(chunk, encode_rows(model, sae, chunk), strict=True):
            ids, facts = per_feature(fired)
            found.append((ids, facts[:, 0] / (stop - start) if per_text == "mean" else facts[:, 1]))
    return found


def _table(texts: Sequence[tuple[Tensor, Tensor]], features: Int[Tensor, " m"]) -> Float[Tensor, "texts m"]:
    """The numbers of some features, in ascending order, in every text; 0 where one does not fire."""
    table = torch.zeros(len(texts), len(features))
    for row, (ids, values) in enumerate(texts):
        wanted = torch.isin(ids, features)
        table[row, torch.searchsorted(features, ids[wanted])] = values[wanted]
    return table
