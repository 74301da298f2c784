"""How far an answer shows a behaviour, by the meaning of its words: a second judge, independent of the model that is steered.

Given examples of the behaviour and plain texts, it finds the direction in which their embeddings part; without examples it
compares answers with the description, which is enough for topics and strong styles only. It knows nothing of likelihoods, so it
can prove what the likelihood judge has tuned. Coherence is beyond it: it takes that from another judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.judges.facts import Answered, Judge, Verdict
from steersman.judges.likelihood import sentence
from steersman.models.sentence_encoder import TextEncoder

_SHRINK = 0.5
_MIN_EXAMPLES = 4
_NO_COHERENCE = "the embedding judge was handed no judge of coherence"


@dataclass(frozen=True, slots=True)
class Axis:
    """Where embeddings of texts with and without a behaviour part: `logistic(weights · embedding + bias)` is its probability."""

    weights: Float[Tensor, " width"]
    bias: float

    def scores(self, embeddings: Float[Tensor, "texts width"]) -> list[float]:
        """Probability of the behaviour, in [0, 1]."""
        return [float(value) for value in torch.sigmoid(embeddings @ self.weights + self.bias)]


def fit_axis(positive: Float[Tensor, "texts width"], negative: Float[Tensor, "texts width"]) -> Axis:
    """Linear discriminant of two sets of embeddings (Fisher 1936), the covariance shrunk towards a sphere.

    Shrunk because there are far fewer texts than dimensions; half way, which needs no tuning, as what is asked for is the
    order of texts. Its scale is set so that the sets' mean logits lie at +2 and -2.

    Raises:
        DataError: fewer than four texts of a kind, or both sets the same.
    """
    if min(len(positive), len(negative)) < _MIN_EXAMPLES:
        raise DataError(
            f"{len(positive)} examples and {len(negative)} plain texts are too few; give at least {_MIN_EXAMPLES} of each"
        )
    one, other = positive.double().mean(0), negative.double().mean(0)
    spread = torch.cat([positive.double() - one, negative.double() - other])
    covariance = spread.T @ spread / len(spread)
    sphere = torch.eye(len(one), dtype=torch.float64) * covariance.diagonal().mean()
    away = one - other
    if float(away.norm()) < 1e-6:
        raise DataError("the examples and the plain texts are the same; they must differ in the behaviour")
    weights = torch.linalg.solve((1 - _SHRINK) * covariance + _SHRINK * sphere + 1e-9 * torch.eye(len(one)), away)
    weights = weights * (4 / float(weights @ away))
    return Axis(weights.float(), -float(weights @ (one + other)) / 2)


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
            self.axis = fit_axis(encoder.encode(positives), encoder.encode(negatives))

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        """One verdict an answer, in order. An empty answer shows no behaviour and scores 0.

        Raises:
            DataError: the behaviour is empty.
        """
        full = [index for index, item in enumerate(items) if item.answer.strip()]
        made = self.encoder.encode([items[index].answer for index in full])
        scores = [0.0] * len(items)
        axis = self.axis or self._described(behaviour)
        for index, value in zip(full, axis.scores(made), strict=True):
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

    def _described(self, behaviour: str) -> Axis:
        """Likeness to the description, less likeness to texts that ask for nothing in particular."""
        away = self.encoder.encode([sentence(behaviour)])[0] - self.encoder.neutral
        # Differences of cosines lie within a few tenths: 0 means unrelated, 0.2 clearly alike.
        return Axis(away * 20, -20 * 0.1)
