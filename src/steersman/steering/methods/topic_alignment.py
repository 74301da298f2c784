"""Topic alignment: one score for every latent of an SAE, high where it fires on texts that are close to a topic.

After "layer-level topic alignment", arXiv:2506.12576. Reference texts are diverse, alignment texts show the topic. With `a_ij`
the activation of latent `j` on reference text `i`, summed up over tokens (the first left out) and normalised to sum 1 over
latents, and `d_i` the smallest Euclidean distance of its sentence embedding to those of the alignment texts:

    m_j = sum_i d_i^2 a_ij / sum_i a_ij        s_j = 1 - (m_j - min m) / (max m - min m)

over the latents that fire at all; the others score 0. Whether the SAE can represent the topic is not asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from pydantic import JsonValue
from torch import Tensor

from steersman.errors import DataError, RecipeError
from steersman.models.language_model import LanguageModel, ModelRef
from steersman.models.residuals import read_residuals
from steersman.models.sentence_encoder import TextEncoder
from steersman.sae.config import SaeRef
from steersman.sae.model import SparseAutoencoder
from steersman.steering.edits import Add, Edit, FeatureWeight, Swap, Weight
from steersman.steering.methods.topic_texts import Piece, pieces_of
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

Summary = Literal["mean", "max", "count"]
"""What stands for a latent on a text: the mean of its activation over tokens, the largest, or the share of tokens it fires on."""
Steering = Literal["sae", "clamp", "weight", "swap"]
"""`sae`: the reconstruction alone; `clamp`: raise the best latents by a constant; `weight`: multiply pre-activations by the
scores; `swap`: let weighted pre-activations choose what fires, at its original value."""

CHUNK_TOKENS = 256
"""Longer texts are cut into pieces that count as texts of their own; the sentence encoder reads no more either."""
TOP = 5
LEAST_PIECES = 3
"""A latent that fires on fewer reference pieces has its score from a text or two: the highest scores are mostly such."""
_PIECES_AT_ONCE = 32


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What an SAE says of some pieces of text, sparse: entry `n` is latent `latents[n]` on piece `pieces[n]`."""

    pieces: Int[Tensor, " n"]
    latents: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    """Float64; they sum to 1 over the latents of a piece."""
    shape: tuple[int, int]
    """Number of pieces, those where nothing fires among them, and of latents."""
    errors: Float[Tensor, " pieces"]
    """Squared distance of the residuals from their reconstruction, summed over the tokens of a piece."""
    squares: Float[Tensor, " pieces"]
    """Squared norms of the residuals, summed likewise."""
    sums: Float[Tensor, "pieces d_model"]
    """The residuals, summed likewise."""
    tokens: Int[Tensor, " pieces"]
    texts: Int[Tensor, " pieces"] | None = None
    """Which text each piece is from; None: each is one of its own."""

    @property
    def silent(self) -> int:
        """Pieces on which nothing fires; they say nothing, and are left out."""
        return self.shape[0] - len(torch.unique(self.pieces))


@dataclass(frozen=True, slots=True, eq=False)
class TopicScores:
    """Scores, and what they were made of."""

    scores: Float[Tensor, " d_sae"]
    """Float32, in [0, 1]."""
    reference: Readings
    distances: Float[Tensor, " pieces"]
    """`d_i`, float64, between 0 and 2."""
    summary: Summary
    facts: dict[str, JsonValue]
    """Counts and hashes, for the recipe."""

    @property
    def fired(self) -> int:
        """Latents that fire on the reference at all: their share is what the paper's code calls coverage."""
        return len(torch.unique(self.reference.latents))

    def top(self, n: int = TOP, least: int = LEAST_PIECES) -> list[int]:
        """Latents of the highest scores among those that fire on at least `least` pieces, then among the others.

        Of equal ones the first. The paper asks for one piece.
        """
        fires_on = torch.bincount(self.reference.latents, minlength=len(self.scores))
        return (self.scores + 2 * (fires_on >= least)).argsort(descending=True, stable=True)[:n].tolist()


def score_topic(
    model: LanguageModel,
    sae: SparseAutoencoder,
    encoder: TextEncoder,
    align: Sequence[str],
    reference: Sequence[str],
    *,
    summary: Summary = "mean",
    chunk_tokens: int = CHUNK_TOKENS,
) -> TopicScores:
    """Score every latent for the topic that `align` shows.

    Args:
        model: what the SAE was trained on.
        sae: of any architecture and layer.
        encoder: for the distances between texts; the paper's is all-MiniLM-L6-v2, the bundled one.
        align: texts of the topic; repeated ones count once.
        reference: diverse texts; repeated ones count once. Only latents that fire on these are scored.
        summary: what stands for a latent on a text.
        chunk_tokens: longest piece.

    Raises:
        DataError: an empty set, texts too short to read, or a reference that is everywhere equally far from the topic.
        SaeError: an SAE of another model.
    """
    near, texts = (
        pieces_of(model, given, name, chunk_tokens) for name, given in (("alignment", align), ("reference", reference))
    )
    if {piece.ids for piece in texts} <= {piece.ids for piece in near}:
        raise DataError("the reference holds nothing but alignment texts; give texts of other topics too")
    distances = smallest_distances(
        encoder.encode([piece.text for piece in texts]), encoder.encode([piece.text for piece in near])
    )
    readings = read_pieces(model, sae, texts, summary=summary)
    facts: dict[str, JsonValue] = {
        "align_texts": len({piece.text_number for piece in near}),
        "align_pieces": len(near),
        "reference_texts": len({piece.text_number for piece in texts}),
        "reference_pieces": len(texts),
        "reference_silent": readings.silent,
        "chunk_tokens": chunk_tokens,
        "summary": summary,
        "encoder": encoder.name,
    }
    return TopicScores(feature_scores(readings, distances), readings, distances, summary, facts)


def smallest_distances(
    texts: Float[Tensor, "texts width"], topic: Float[Tensor, "others width"]
) -> Float[Tensor, " texts"]:
    """Euclidean distance of each embedding to the nearest one of the topic, float64."""
    # Without the product of norms and cosines: that one is far off where texts are equal.
    return torch.cdist(texts.double(), topic.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def feature_scores(
    readings: Readings, distances: Float[Tensor, " pieces"], weights: Float[Tensor, " pieces"] | None = None
) -> Float[Tensor, " d_sae"]:
    """`s_j` of the head of this module, float32; a latent that never fires has 0.

    Args:
        readings: `a_ij` of the reference.
        distances: `d_i`.
        weights: how often each piece counts, for resampling; by default once.

    Raises:
        DataError: nothing fires, or all that fires is equally far from the topic.
    """
    values = readings.values if weights is None else readings.values * weights[readings.pieces]
    mass, pulled = torch.zeros(2, readings.shape[1], dtype=torch.float64)
    mass.index_add_(0, readings.latents, values)
    # arXiv:2506.12576, the score of a feature: squared distances, averaged by activation.
    pulled.index_add_(0, readings.latents, values * distances[readings.pieces] ** 2)
    fired = mass > 0
    if not fired.any():
        raise DataError("no latent of the SAE fires on the reference texts; check that the SAE belongs to the model")
    mean = pulled[fired] / mass[fired]
    span = mean.max() - mean.min()
    if not span > 1e-12:
        raise DataError(
            "the reference texts are all equally far from the topic, so nothing can be scored; give more and more diverse ones"
        )
    scores = torch.zeros(readings.shape[1], dtype=torch.float64)
    scores[fired] = 1 - (mean - mean.min()) / span
    return scores.float()


@torch.no_grad()
def read_pieces(
    model: LanguageModel, sae: SparseAutoencoder, pieces: Sequence[Piece], *, summary: Summary = "mean"
) -> Readings:
    """Run pieces through the model and the SAE; memory holds the residuals of a few at a time.

    Raises:
        DataError: no pieces, or a summary that does not exist.
        SaeError: an SAE of another model.
    """
    if summary not in get_args(Summary):
        raise DataError(f"unknown summary {summary!r}; use one of {', '.join(get_args(Summary))}")
    sae.check_fits(model.ref)
    layer, found, rows = sae.config.layer, [], []
    for first in range(0, len(pieces), _PIECES_AT_ONCE):
        chunk = [piece.ids for piece in pieces[first : first + _PIECES_AT_ONCE]]
        for number, residuals in enumerate(read_residuals(model, chunk, [layer]), first):
            h = residuals[layer].float().to(sae.device)
            ids, values = sae.encode_sparse(h)
            off = (h - sae.decode_sparse(ids, values, h)).square().sum()
            rows.append((off, h.square().sum(), h.sum(0), len(h)))
            latents, shares = summarised(ids.cpu(), values.cpu(), summary)
            found.append((torch.full_like(latents, number), latents, shares))
    errors, squares, sums, tokens = zip(*rows, strict=True)
    numbers, latents, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Readings(
        numbers,
        latents,
        values,
        (len(pieces), sae.config.d_sae),
        torch.stack(errors).double().cpu(),
        torch.stack(squares).double().cpu(),
        torch.stack(sums).double().cpu(),
        torch.tensor(tokens),
        torch.tensor([piece.text_number for piece in pieces]),
    )


def summarised(
    ids: Int[Tensor, "tokens n"], values: Float[Tensor, "tokens n"], summary: Summary
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """The latents that fire on a text and the share of each, float64, which sum to 1; both empty where nothing fires."""
    latents, places = torch.unique(ids[values > 0], return_inverse=True)
    there = values[values > 0].double()
    totals = torch.zeros(len(latents), dtype=torch.float64)
    if summary == "max":
        totals.scatter_reduce_(0, places, there, "amax")
    else:
        # Divided by the number of tokens or not: the same once it is normalised.
        totals.index_add_(0, places, there if summary == "mean" else torch.ones_like(there))
    return latents, totals / totals.sum()


def fit(
    topic: TopicScores,
    sae: SparseAutoencoder,
    *,
    model: ModelRef,
    sae_ref: SaeRef,
    name: str,
    method: Steering = "swap",
    keep_error: bool | None = None,
    top: int = TOP,
    least: int = LEAST_PIECES,
    amount: float = 0.3,
) -> Recipe:
    """The recipe that steers towards the topic with its scores.

    Args:
        topic: what `score_topic` found.
        sae: the SAE that it was found with.
        model: fingerprint of the model.
        sae_ref: what the recipe calls the SAE.
        name: of the recipe.
        method: how the scores are used.
        keep_error: keep what the SAE does not reconstruct (the paper drops it); by default kept, but for `sae`.
        top: latents that `clamp` raises.
        least: reference pieces that each of them fires on, where there are enough such; 1 in the paper.
        amount: length of what `clamp` adds, in mean residual norms: the paper's constant times the sum of the decoder rows.

    Raises:
        RecipeError: a method that does not exist, `sae` with the error kept, or a dead latent among the best.
    """
    if method not in get_args(Steering):
        raise RecipeError(f"unknown topic method {method!r}; use one of {', '.join(get_args(Steering))}")
    if method == "sae" and keep_error:
        raise RecipeError("'sae' replaces the residual by its reconstruction; with the error kept it would do nothing")
    keep = method != "sae" if keep_error is None else keep_error
    layer = sae.config.layer
    plain = Weight(layer=layer, sae=sae_ref, scores=Vector(torch.ones(sae.config.d_sae)), keep_error=False)
    edits: tuple[Edit, ...]
    match method:
        case "sae":
            edits = (plain,)
        case "clamp":
            raised = _raised(sae, topic.top(top, least), layer, amount)
            edits = (raised,) if keep else (plain, raised)
        case "weight":
            edits = (Weight(layer=layer, sae=sae_ref, scores=Vector(topic.scores), keep_error=keep),)
        case "swap":
            edits = (Swap(layer=layer, sae=sae_ref, scores=Vector(topic.scores), keep_error=keep),)
    data = topic.facts | {"keep_error": keep, "top": list(topic.top(top, least))}
    return Recipe(name=name, edits=edits, model=model, sae=sae_ref, method=f"topic {method}", data=data)


def _raised(sae: SparseAutoencoder, latents: Sequence[int], layer: int, amount: float) -> Add:
    rows = sae.W_dec[list(latents)].cpu()
    if not rows.any(-1).all():
        raise RecipeError("a latent among the best is dead: it writes nothing; raise fewer (top)")
    features = tuple(FeatureWeight(id=latent, weight=1.0) for latent in latents)
    return Add(layer=layer, vector=Vector(rows.sum(0)), strength=amount, features=features)
