"""How strongly to push: chosen by what the model writes on validation prompts, not by the loss that weights were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from steersman.auto.task import Task
from steersman.auto.writing import asking, write
from steersman.steering.recipe import Recipe

FACTORS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.45)
"""Tried on the length that the weights were trained at."""

_USUAL = 0.12
"""Length to try around where an optimiser does not say one, in mean residual norms."""


def trained_norm(task: Task, weights: Mapping[int, float]) -> float:
    """Length of the weighted sum of unit decoder rows: what the weights, as they are, add in mean residual norms."""
    rows = task.sae.W_dec[list(weights)].cpu().float()
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-8)
    return float((torch.tensor(list(weights.values())) @ unit).norm())


def choose_strength(
    task: Task, recipe: Recipe, prompts: Sequence[str], around: float | None = None
) -> tuple[float, dict[float, float]]:
    """Answer validation prompts at several strengths, all in one batch, and take the best mean product.

    Args:
        task: whose judge decides.
        recipe: at strength 1 of its edits' own; what is tried are factors on `around` over that.
        prompts: not among those that are reported on.
        around: length to try around, in mean residual norms.

    Returns:
        The best length, and the score of each that was tried; strength 0 is among them.
    """
    own = max(edit.strength for edit in recipe.edits)
    lengths = [0.0, *(factor * (around or _USUAL) for factor in FACTORS)]
    requests = [
        asking(prompt, recipe if length else None, strength=length / own if length else 1.0)
        for length in lengths
        for prompt in prompts
    ]
    texts = write(task.engine, requests)
    verdicts = task.judged(list(prompts) * len(lengths), texts)
    scores: dict[float, float] = {}
    for number, length in enumerate(lengths):
        part = verdicts[number * len(prompts) : (number + 1) * len(prompts)]
        products = [verdict.product for verdict in part if verdict.product is not None]
        scores[round(length, 4)] = fmean(products) if products else 0.0
        task.report("strength", {"strength": round(length, 4), "score": scores[round(length, 4)]})
    best = max(scores, key=lambda length: (scores[length], -length))
    return best, scores
