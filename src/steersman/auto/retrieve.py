"""Which features may carry a behaviour: by gradient, by contrast, by search. Doubtful ones are marked.

The gradient ranks *all* features in one backward pass: how much likelier the examples become, to first order, for each unit of
a feature's decoder row added at every token (attribution, as in arXiv:2310.10348 for edges; here one product with the decoder).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.auto.facts import Behaviour, Candidate, ContrastItem, Source
from steersman.auto.task import Task
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, Message
from steersman.models.sentence_encoder import TextEncoder
from steersman.models.spans import answer_span
from steersman.models.upper import Reading, UpperModel
from steersman.sae.index.clues import read_label
from steersman.sae.index.contrast import contrast
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.index.search import search

FORMATTING = frozenset({
    "later digits of numbers", "spaces before numbers", "empty lines", "line breaks", "first words of lines",
    "ends of turns", "assistant tags", "user tags", "lists", "headings", "tables", "brackets", "markup", "Markdown",
})  # fmt: skip
"""Kinds and places that a label names when a feature is about how text looks."""

_OFTEN, _NEVER = 0.2, 0.0


@fact
class RetrievalSettings:
    """How many candidates each source gives; 0 leaves a source out."""

    gradient: int = 48
    contrast: int = 24
    search: int = 12
    keep_marked: bool = False
    """Keep features that fire everywhere or on formatting only."""


def retrieve(task: Task, encoder: TextEncoder, settings: RetrievalSettings) -> list[Candidate]:
    """Candidate features, best first; each source's scores are scaled to at most 1."""
    found: dict[Source, dict[int, float]] = {}
    if settings.gradient:
        found["gradient"] = _strongest(attribution(task), settings.gradient)
    if settings.contrast:
        found["contrast"] = _by_contrast(task, settings.contrast)
    if settings.search:
        found["search"] = _by_search(task.index, task.behaviour, encoder, settings.search)
    merged: dict[int, list[tuple[Source, float]]] = {}
    for source, scores in found.items():
        top = max((abs(score) for score in scores.values()), default=1.0) or 1.0
        for feature, score in scores.items():
            merged.setdefault(feature, []).append((source, score / top))
    candidates = []
    for feature, ranked in merged.items():
        label = task.index.labels[feature]
        candidates.append(
            Candidate(
                id=feature,
                label=label.text if label else None,
                sources=tuple(source for source, _ in ranked),
                score=max((score for _, score in ranked), key=abs),
                marks=marks(task.index, feature),
            )
        )
    kept = [candidate for candidate in candidates if settings.keep_marked or not candidate.marks]
    return sorted(kept, key=lambda candidate: (-abs(candidate.score), candidate.id))


def attribution(task: Task) -> Float[Tensor, " features"]:
    """Gradient of the examples' mean log-probability a token, along the unit decoder row of every feature.

    The positive answers pull up, the plain ones push down: what merely makes any answer likelier cancels out.
    """
    upper = UpperModel(task.model, task.sae.config.layer)
    total = torch.zeros(task.model.d_model)
    for sign, side in ((1.0, "positive"), (-1.0, "negative")):
        readings = [reading_of(task.model, item, getattr(item, side)) for item in task.contrast.train]
        n = sum(len(reading.ids) - reading.start for reading in readings)
        for batch in upper.prepare(readings):
            added = torch.zeros_like(batch.hidden, dtype=torch.float32, requires_grad=True)
            (slope,) = torch.autograd.grad(upper.logprobs(batch, added).sum(), added)
            total += sign * slope.sum((0, 1)).cpu() / n
    rows = task.sae.W_dec.cpu()
    scores: Tensor = (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-8)) @ total
    return scores


def reading_of(model: LanguageModel, item: ContrastItem, answer: str) -> Reading:
    """An answer to its prompt, without the system prompt that asked for it; its tokens are to be predicted."""
    chat = [Message(role="user", content=item.prompt), Message(role="assistant", content=answer)]
    span = answer_span(model, chat)
    return Reading(tuple(span.ids[: span.stop]), span.start)


def marks(index: FeatureIndex, feature: int) -> tuple[str, ...]:
    """Why a feature is doubtful as a carrier of behaviour."""
    density, label = float(index.density[feature]), index.labels[feature]
    found = []
    if density <= _NEVER:
        found.append("never fires")
    if density > _OFTEN:
        found.append("fires everywhere")
    clues = read_label(label.text) if label else None
    said = [clue for alternative in clues or () for clue in alternative]
    if said and all(clue.kind in ("kind", "in") and set(clue.words) <= FORMATTING for clue in said):
        found.append("formatting only")
    return tuple(found)


def _strongest(scores: Float[Tensor, " features"], n: int) -> dict[int, float]:
    best = scores.abs().topk(min(n, len(scores))).indices
    return {feature: float(scores[feature]) for feature in best.tolist()}


def _by_contrast(task: Task, n: int) -> dict[int, float]:
    positives, negatives = (
        [_chat(item.prompt, getattr(item, side)) for item in task.contrast.train] for side in ("positive", "negative")
    )
    found = contrast(task.model, task.sae, positives, negatives, n=n, index=task.index)
    both = [*found.positive, *found.negative]
    best = sorted(both, key=lambda difference: -abs(difference.score))[:n]
    return {difference.feature: difference.score for difference in best}


def _by_search(index: FeatureIndex, behaviour: Behaviour, encoder: TextEncoder, n: int) -> dict[int, float]:
    """Features near the description, and, to be pushed down, those near its opposite alone."""
    hits = {hit.feature: hit.score for hit in search(index, behaviour.description, encoder, n=n)}
    if behaviour.opposite:
        for hit in search(index, behaviour.opposite, encoder, n=n):
            hits.setdefault(hit.feature, -hit.score)
    return hits


def _chat(prompt: str, answer: str) -> Sequence[Message]:
    return [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
