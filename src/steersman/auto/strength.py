"""How strongly to push: chosen by what the model writes on validation prompts, not by the loss that weights were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from steersman.auto.task import ANSWER_TOKENS, Task
from steersman.engine.request import Request, Sampling
from steersman.models.language_model import Message
from steersman.steering.recipe import Recipe

FACTORS = (0.6, 1.0, 1.4, 1.8, 2.3, 2.8, 3.4)
"""Tried on the length that the weights were trained at; two to two and a half is usual."""

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
    sampling = Sampling(max_tokens=ANSWER_TOKENS, repetition_penalty=1.1)
    requests = [
        Request(
            prompt=[Message(role="user", content=prompt)],
            recipe=recipe if length else None,
            strength=length / own if length else 1.0,
            sampling=sampling,
        )
        for length in lengths
        for prompt in prompts
    ]
    texts = [result.text for result in task.engine.generate(requests)]
    verdicts = task.judged(list(prompts) * len(lengths), texts)
    scores: dict[float, float] = {}
    for number, length in enumerate(lengths):
        part = verdicts[number * len(prompts) : (number + 1) * len(prompts)]
        products = [verdict.product for verdict in part if verdict.product is not None]
        scores[round(length, 4)] = fmean(products) if products else 0.0
        task.report("strength", {"strength": round(length, 4), "score": scores[round(length, 4)]})
    best = max(scores, key=lambda length: (scores[length], -length))
    return best, scores
