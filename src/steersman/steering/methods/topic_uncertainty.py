"""Whether an SAE can represent a topic at all, and how sure the scores of its latents are. All that is measured is a frozen fact.

- *Coverage*: the share of the topic's activation mass on latents that separate it from the reference (chance `SEPARATES` or more
  that a topic piece has the larger share), less the share of the reference's mass on them. Latents are chosen on one half of the
  texts and the mass is read on the other, both ways round: a topic that nothing separates has 0, however few its texts.
- *Error*: the variance of the residuals, about the reference's mean, that the reconstruction leaves unexplained.
- *Number* of the verdict: coverage times what the reconstruction explains, `coverage * max(0, 1 - error)`; its interval by
  bootstrap over pieces. The SAE *can* represent the topic where the whole interval lies above `LEAST`.
- *Scores*: percentile intervals over resampled reference pieces (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.intervals import Interval
from steersman.models.language_model import LanguageModel
from steersman.sae.index.contrast import area_under_curve
from steersman.sae.model import SparseAutoencoder
from steersman.steering.methods.topic_alignment import CHUNK_TOKENS, Readings, TopicScores, feature_scores, read_pieces
from steersman.steering.methods.topic_texts import pieces_of

Verdict = Literal["can", "can hardly"]

SEPARATES = 0.75
"""Chance that a topic piece has more of a latent than a reference piece, ties counted as half."""
LEAST = 0.05
"""What the number must surely exceed."""

_RESAMPLES, _SCORE_RESAMPLES = 2000, 200
_MAX_PIECES = 256
_LATENTS_AT_ONCE = 1024


@fact
class ScoreInterval:
    """The score of one latent and its percentile interval."""

    latent: int
    score: float
    low: float | None
    """None where it fires in no resample."""
    high: float | None
    pieces: int
    """Reference pieces that it fires on: the fewer, the less a score means."""


@fact
class TopicUncertainty:
    """What is known of how well an SAE represents a topic."""

    verdict: Verdict
    number: Interval
    """`coverage * (1 - topic_error)`, with its interval; `n` scored of `total` topic pieces."""
    coverage: float
    """Share of the topic's mass on separating latents, less that of the reference."""
    topic_share: float
    reference_share: float
    separating: int
    """Latents that separate, chosen on all texts."""
    topic_error: float
    """Unexplained share of the variance on the topic."""
    reference_error: float
    fired_share: float
    """Share of all latents that fire on the reference; the others have no score. The paper's code calls this coverage."""
    mean_width: float
    """Width of the scores' intervals, averaged by the mass of the reference."""
    top: tuple[ScoreInterval, ...]
    """The latents of the highest scores."""
    topic_pieces: int
    reference_pieces: int
    seed: int

    def __str__(self) -> str:
        n = self.number
        return (
            f"this SAE {self.verdict} represent this topic: {n.mean:.2f} [{n.low:.2f}, {n.high:.2f}] "
            f"({n.n} scored / {n.total} pieces)"
        )


def assess(
    model: LanguageModel,
    sae: SparseAutoencoder,
    topic: TopicScores,
    align: Sequence[str],
    *,
    seed: int = 0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TopicUncertainty:
    """Read the topic's texts (at most 256 pieces, evenly taken) and say how well the SAE represents them.

    Raises:
        DataError: texts that cannot be used, or too few pieces on which anything fires.
        SaeError: an SAE of another model.
    """
    pieces = pieces_of(model, align, "alignment", chunk_tokens)
    step = max(1.0, len(pieces) / _MAX_PIECES)
    taken = [pieces[int(number * step)] for number in range(min(len(pieces), _MAX_PIECES))]
    readings = read_pieces(model, sae, taken, summary=topic.summary)
    return uncertainty(topic, readings, seed=seed)


def uncertainty(topic: TopicScores, readings: Readings, *, seed: int = 0) -> TopicUncertainty:
    """`assess` for readings that are there: those of the topic's pieces, with the summary of the scores.

    Raises:
        DataError: fewer than two pieces of the topic or the reference on which anything fires.
    """
    reference, made = topic.reference, torch.Generator().manual_seed(seed)
    shares = held_out_shares(readings, reference, made)
    errors = [unexplained(each, reference) for each in (readings, reference)]
    number = _number(shares, errors[0], readings.shape[0], made)
    assert number.low is not None
    low, high = score_intervals(topic, made)
    mass = _mass(reference)
    known = ~low.isnan() & (mass > 0)
    return TopicUncertainty(
        verdict="can" if number.low > LEAST else "can hardly",
        number=number,
        coverage=float(shares[0].mean() - shares[1].mean()),
        topic_share=float(shares[0].mean()),
        reference_share=float(shares[1].mean()),
        separating=int(separating(readings, reference, *map(_speaking, (readings, reference))).sum()),
        topic_error=errors[0],
        reference_error=errors[1],
        fired_share=topic.fired / reference.shape[1],
        mean_width=float(((high - low)[known] * mass[known]).sum() / mass[known].sum()),
        top=tuple(_interval(topic, latent, low, high) for latent in topic.top(10)),
        topic_pieces=readings.shape[0],
        reference_pieces=reference.shape[0],
        seed=seed,
    )


def held_out_shares(
    topic: Readings, reference: Readings, made: torch.Generator
) -> tuple[Float[Tensor, " a"], Float[Tensor, " b"]]:
    """For each piece that speaks, of topic and reference, its mass on latents that separate the *other* halves of the texts.

    Raises:
        DataError: fewer than two such pieces of either, or pieces of one text alone.
    """
    found: list[Tensor] = []
    halves = []
    for name, readings in (("topic", topic), ("reference", reference)):
        speaking = _speaking(readings)
        if len(speaking) < 2:
            raise DataError(f"latents fire on {len(speaking)} pieces of the {name}; at least 2 are needed")
        # Pieces of one text are alike: on both sides they would vouch for one another.
        owners = speaking if readings.texts is None else readings.texts[speaking]
        texts = torch.unique(owners)
        if len(texts) < 2:
            raise DataError(f"latents fire on pieces of one text of the {name} alone; at least 2 texts are needed")
        first = torch.isin(owners, texts[torch.randperm(len(texts), generator=made)][::2])
        halves.append((speaking[first], speaking[~first]))
        found.append(torch.full((readings.shape[0],), torch.nan, dtype=torch.float64))
    for one, other in ((0, 1), (1, 0)):
        chosen = separating(topic, reference, halves[0][one], halves[1][one])
        for shares, readings, half in zip(found, (topic, reference), halves, strict=True):
            shares[half[other]] = _share(readings, chosen)[half[other]]
    of_topic, of_reference = (shares[~shares.isnan()] for shares in found)
    return of_topic, of_reference


def separating(
    topic: Readings, reference: Readings, topic_pieces: Int[Tensor, " a"], reference_pieces: Int[Tensor, " b"]
) -> Bool[Tensor, " d_sae"]:
    """Latents of which a topic piece has more than a reference piece with a chance of `SEPARATES` or more."""
    chosen = torch.zeros(topic.shape[1], dtype=torch.bool)
    # What does not fire on the topic separates it from nothing.
    candidates = torch.unique(topic.latents[torch.isin(topic.pieces, topic_pieces)])
    for latents in torch.split(candidates, _LATENTS_AT_ONCE):
        tables = _table(topic, topic_pieces, latents), _table(reference, reference_pieces, latents)
        chosen[latents] = area_under_curve(*tables) >= SEPARATES
    return chosen


def unexplained(readings: Readings, reference: Readings) -> float:
    """Squared reconstruction error over squared distance from the reference's mean residual, both summed over tokens."""
    centre = reference.sums.sum(0) / reference.tokens.sum()
    spread = (
        readings.squares.sum() - 2 * (readings.sums.sum(0) @ centre) + readings.tokens.sum() * centre.square().sum()
    )
    return float(readings.errors.sum() / spread)


def score_intervals(
    topic: TopicScores, made: torch.Generator, level: float = 0.95
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Percentile interval of every score over resampled reference pieces; NaN for latents that fire in none.

    A resample scores only what fires in it, as the scores themselves do.
    """
    readings, n = topic.reference, topic.reference.shape[0]
    drawn = []
    for _ in range(_SCORE_RESAMPLES):
        weights = torch.bincount(torch.randint(n, (n,), generator=made), minlength=n).double()
        try:
            scores = feature_scores(readings, topic.distances, weights)
        except DataError:
            continue  # A resample without any spread says nothing.
        drawn.append(torch.where(_mass(readings, weights) > 0, scores, torch.nan))
    if not drawn:
        nothing = torch.full((readings.shape[1],), torch.nan)
        return nothing, nothing
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = torch.stack(drawn).nanquantile(ends, dim=0)
    return low, high


def _number(shares: tuple[Tensor, Tensor], error: float, total: int, made: torch.Generator) -> Interval:
    # Where the reconstruction is worse than the mean it explains nothing: a negative share would turn the sign of a bad coverage.
    explained = max(0.0, 1 - error)
    means = [
        share[torch.randint(len(share), (_RESAMPLES, len(share)), generator=made)].mean(1) * explained
        for share in shares
    ]
    ends = (means[0] - means[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    mean = float((shares[0].mean() - shares[1].mean()) * explained)
    return Interval(mean=mean, low=float(ends[0]), high=float(ends[1]), n=len(shares[0]), total=total)


def _interval(topic: TopicScores, latent: int, low: Tensor, high: Tensor) -> ScoreInterval:
    ends = [None if bool(end[latent].isnan()) else float(end[latent]) for end in (low, high)]
    fires_on = int((topic.reference.latents == latent).sum())
    return ScoreInterval(latent=latent, score=float(topic.scores[latent]), low=ends[0], high=ends[1], pieces=fires_on)


def _speaking(readings: Readings) -> Int[Tensor, " pieces"]:
    found: Tensor = torch.unique(readings.pieces)
    return found


def _mass(readings: Readings, weights: Tensor | None = None) -> Float[Tensor, " d_sae"]:
    values = readings.values if weights is None else readings.values * weights[readings.pieces]
    return torch.zeros(readings.shape[1], dtype=torch.float64).index_add(0, readings.latents, values)


def _share(readings: Readings, chosen: Bool[Tensor, " d_sae"]) -> Float[Tensor, " pieces"]:
    shares = torch.zeros(readings.shape[0], dtype=torch.float64)
    return shares.index_add(0, readings.pieces, readings.values * chosen[readings.latents])


def _table(readings: Readings, pieces: Int[Tensor, " a"], latents: Int[Tensor, " m"]) -> Float[Tensor, "a m"]:
    """Shares of some latents, in ascending order, on some pieces; 0 where one does not fire."""
    row = torch.full((readings.shape[0],), -1).index_copy(0, pieces, torch.arange(len(pieces)))
    column = torch.full((readings.shape[1],), -1).index_copy(0, latents, torch.arange(len(latents)))
    rows, columns = row[readings.pieces], column[readings.latents]
    wanted = (rows >= 0) & (columns >= 0)
    table = torch.zeros(len(pieces), len(latents), dtype=torch.float64)
    table[rows[wanted], columns[wanted]] = readings.values[wanted]
    return table
