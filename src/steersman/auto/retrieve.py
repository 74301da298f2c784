"""Which features may carry a behaviour: by gradient, by contrast, by search. Doubtful ones are marked.

The gradient ranks *all* features in one backward pass over the lessons: how much nearer the model comes to what it should
predict, to first order, for each unit of a feature's decoder row added at every token (attribution, as in arXiv:2310.10348 for
edges; here one product with the decoder).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.auto.expand import Query, queries_of
from steersman.auto.facts import Candidate, Source
from steersman.auto.task import Task
from steersman.facts import fact
from steersman.models.language_model import Message
from steersman.models.sentence_encoder import TextEncoder
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


def retrieve(
    task: Task, encoder: TextEncoder, settings: RetrievalSettings, queries: Sequence[Query] | None = None
) -> list[Candidate]:
    """Candidate features, best first; each source's scores are scaled to at most 1.

    Args:
        task: whose behaviour is looked for.
        encoder: reads queries and labels.
        settings: how many of each source.
        queries: what labels are searched for; by default the description and its opposite.
    """
    found: dict[Source, dict[int, float]] = {}
    if settings.gradient:
        found["gradient"] = _strongest(attribution(task), settings.gradient)
    if settings.contrast:
        found["contrast"] = _by_contrast(task, settings.contrast)
    if settings.search:
        found["search"] = _by_search(task.index, queries or queries_of(task.behaviour), encoder, settings.search)
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
    """How fast the lessons' loss falls, in nats a token, along the unit decoder row of every feature."""
    lessons, total = task.lessons, torch.zeros(task.model.d_model)
    for lesson in lessons.train:
        added = torch.zeros(task.model.d_model, device=task.model.device, requires_grad=True)
        (slope,) = torch.autograd.grad(lesson.loss(lessons.upper, added), added)
        total -= slope.cpu()
    rows = task.sae.W_dec.cpu()
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-8)
    scores: Tensor = unit @ total / sum(map(len, lessons.train))
    return scores


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


def _by_search(index: FeatureIndex, queries: Sequence[Query], encoder: TextEncoder, n: int) -> dict[int, float]:
    """Features near any query; those near an opposite alone are to be pushed down."""
    hits: dict[int, float] = {}
    for query in sorted(queries, key=lambda each: each.is_opposite):
        for hit in search(index, query.text, encoder, n=n):
            if not query.is_opposite:
                hits[hit.feature] = max(hits.get(hit.feature, hit.score), hit.score)
            else:
                hits.setdefault(hit.feature, -hit.score)
    up = sorted((feature for feature in hits if hits[feature] >= 0), key=lambda feature: -hits[feature])
    down = sorted((feature for feature in hits if hits[feature] < 0), key=lambda feature: hits[feature])
    room = min(len(down), n // 3)  # Opposites have a third of the places.
    return {feature: hits[feature] for feature in (*up[: n - room], *down[:room])}


def _chat(prompt: str, answer: str) -> Sequence[Message]:
    return [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
