"""Greedy answers by the engine, any number of prompts, system prompts and recipes in one batch. Knows nothing of judges."""

from __future__ import annotations

from collections.abc import Sequence

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.models.language_model import chat
from steersman.steering.recipe import Recipe

ANSWER_TOKENS = 40
"""Length of the answers that are judged while tuning."""
SLOTS = 96
"""Answers that are written at once: on a CPU, 96 rows give half as many tokens a second again as 32."""


def asking(
    prompt: str,
    recipe: Recipe | None = None,
    *,
    system: str | None = None,
    strength: float = 1.0,
    tokens: int = ANSWER_TOKENS,
) -> Request:
    """One answer to be written: greedily, with a light penalty on repetition, so that the same request gives the same answer.

    Args:
        prompt: what the user says.
        recipe: what steers.
        system: a system prompt.
        strength: factor on the recipe's strengths.
        tokens: at most so many.
    """
    sampling = Sampling(max_tokens=tokens, repetition_penalty=1.1)
    return Request(prompt=chat(prompt, system), recipe=recipe, strength=strength, sampling=sampling)


def write(engine: Engine, requests: Sequence[Request]) -> list[str]:
    """The answers, in order."""
    return [result.text for result in engine.generate(list(requests))]
