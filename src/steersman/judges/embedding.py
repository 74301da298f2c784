"""How far an answer shows a behaviour, by what it means and how it is worded: a second judge, independent of any language model.

Given examples of the behaviour and plain answers, it finds the line along which their sentence embeddings and their words part;
without examples it compares embeddings with the description, which tells topics and strong styles only. It knows nothing of
likelihoods, so it can prove what the likelihood judge has tuned. Coherence is beyond it: it takes that from another judge.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.judges.facts import Answered, Judge, Verdict
from steersman.judges.likelihood import sentence
from steersman.models.sentence_encoder import TextEncoder

_MIN_EXAMPLES = 4
_BUCKETS = 2048
_SURE = 2.2
"""Largest logit of the mean of the examples: a score of 0.9, so that answers between them and plain ones are told apart."""
_UNSURE = 0.2
"""Least logit between the means of the examples, so that the order of texts is kept where nothing is sure."""
_PIECE = re.compile(r"\w+|[^\w\s]")
_NO_COHERENCE = "the embedding judge was handed no judge of coherence"


@dataclass(frozen=True, slots=True)
class Axis:
    """Where texts with and without a behaviour part: `logistic(weights · features + bias)` is its probability."""

    weights: Float[Tensor, " width"]
    bias: float

    def scores(self, features: Float[Tensor, "texts width"]) -> list[float]:
        """Probability of the behaviour, in [0, 1]."""
        return [float(value) for value in torch.sigmoid(features @ self.weights + self.bias)]


def fit_axis(positive: Float[Tensor, "texts width"], negative: Float[Tensor, "texts width"]) -> Axis:
    """The line through the means of two sets of texts, with logits that a left-out example would deserve.

    Nearest-mean classification: with far more features than texts, what weighs the features by their spread (discriminants,
    ridge, logistic regression) did no better. The logit of a text is that of two normal distributions of equal spread, as the
    left-out examples lie along the line: where they do not part, every text scores about one half.

    Args:
        positive: texts with the behaviour.
        negative: texts without. As many, they are taken for answers to the same prompts in the same order, and left out in pairs:
            else the text beside it would lend a left-out one its topic.

    Raises:
        DataError: fewer than four texts of a kind, or both sets the same.
    """
    n, m = len(positive), len(negative)
    if min(n, m) < _MIN_EXAMPLES:
        raise DataError(f"{n} examples and {m} plain texts are too few; give at least {_MIN_EXAMPLES} of each")
    one, other = positive.mean(0), negative.mean(0)
    away = one - other
    if float(away.norm()) < 1e-6:
        raise DataError("the examples and the plain texts are the same; they must differ in the behaviour")
    ones, others = ((total * k - rows) / (k - 1) for total, rows, k in ((one, positive, n), (other, negative, m)))
    high = (positive * (ones - (others if n == m else other))).sum(1)
    low = (negative * ((ones if n == m else one) - others)).sum(1)
    apart, spread = float(high.mean() - low.mean()), float((high.var() + low.var()) / 2)
    # Between the means the logit grows by their distance over the spread, in units of it; and never by more than is sure.
    slope = min(apart / max(spread, 1e-9), 2 * _SURE / apart) if apart > 0 else 0.0
    slope = max(slope, _UNSURE / float(away @ away))
    return Axis(away * slope, -slope * float(high.mean() + low.mean()) / 2)


def wording(texts: Sequence[str]) -> Float[Tensor, "texts buckets"]:
    """How texts are written: words, and pieces of one to three characters, counted in hashed buckets; each half of norm 1."""
    return torch.cat([_counted(_words(text) for text in texts), _counted(_pieces(text) for text in texts)], 1)


class EmbeddingJudge:
    """A judge of the protocol in `facts`."""

    name = "embedding"

    def __init__(
        self,
        encoder: TextEncoder,
        positives: Sequence[str] = (),
        negatives: Sequence[str] = (),
        *,
        coherence: Judge | None = None,
    ) -> None:
        """Make a judge; with examples it judges the one behaviour that they show.

        Args:
            encoder: turns texts into unit vectors.
            positives: answers that show the behaviour; at least four, or none at all.
            negatives: plain answers, best to the same prompts.
            coherence: whose coherence is taken over; without one that number is missing, with the reason.

        Raises:
            DataError: too few examples of a kind, an empty one, or the same on both sides.
        """
        self.encoder, self.coherence = encoder, coherence
        self.axis: Axis | None = None
        """Where the examples part; None where there are none."""
        if positives or negatives:
            self.axis = fit_axis(self._features(positives), self._features(negatives))

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        """One verdict an answer, in order. An empty answer shows no behaviour and scores 0.

        Raises:
            DataError: the behaviour is empty.
        """
        full = [index for index, item in enumerate(items) if item.answer.strip()]
        said, scores = sentence(behaviour), [0.0] * len(items)
        texts = [items[index].answer for index in full]
        if self.axis is not None:
            found = self.axis.scores(self._features(texts))
        else:
            found = self._described(said).scores(self.encoder.encode(texts))
        for index, value in zip(full, found, strict=True):
            scores[index] = value
        if self.coherence is None:
            return [Verdict(behaviour=value, coherence=None, missing=_NO_COHERENCE) for value in scores]
        return [
            Verdict(
                behaviour=value,
                coherence=other.coherence,
                critique=other.critique,
                missing=other.missing if other.coherence is None else None,
            )
            for value, other in zip(scores, self.coherence.judge(behaviour, items), strict=True)
        ]

    def _features(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        return torch.cat([self.encoder.encode(texts), wording(texts)], 1)

    def _described(self, behaviour: str) -> Axis:
        """Likeness to the description, less likeness to texts that ask for nothing in particular."""
        away = self.encoder.encode([behaviour])[0] - self.encoder.neutral
        # Differences of cosines lie within a few tenths: 0 means unrelated, 0.2 clearly alike.
        return Axis(away * 20, -20 * 0.1)


def _words(text: str) -> Iterator[str]:
    """As they stand, and in lower case."""
    yield from _PIECE.findall(text)
    yield from _PIECE.findall(text.lower())


def _pieces(text: str) -> Iterator[str]:
    line = f" {' '.join(text.lower().split())} "
    return (line[at : at + size] for size in (1, 2, 3) for at in range(len(line) - size + 1))


def _counted(texts: Iterable[Iterator[str]]) -> Float[Tensor, "texts buckets"]:
    rows = []
    for pieces in texts:
        row = torch.zeros(_BUCKETS)
        at = torch.tensor([zlib.crc32(piece.encode()) % _BUCKETS for piece in pieces], dtype=torch.long)
        # Square roots, so that frequent pieces do not drown the rest.
        rows.append(row.index_add(0, at, torch.ones(len(at))).sqrt())
    return F.normalize(torch.stack(rows), dim=1) if rows else torch.zeros(0, _BUCKETS)
