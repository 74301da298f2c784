"""What a measurement of effects is made with: frozen facts, checked at birth. Knows nothing of tensors."""

from __future__ import annotations

import math

from steersman.errors import DataError
from steersman.facts import fact

PROMPTS = (
    "I think",
    "Last night",
    "The weather today",
    "Dear Sir",
    "She told me",
    "How to make",
    "In the end",
    "My best friend",
    "It was a",
    "For this recipe",
    "The company said",
    "Once upon a",
    "Scientists have found",
    "What I like",
)
"""Begins of texts of many kinds; short, so that nearly all tokens are written and not read."""


@fact
class EffectSettings:
    """Everything that the numbers depend on, apart from model, SAE and which vectors."""

    prompts: tuple[str, ...] = PROMPTS
    """Raw text to continue; at least two tokens each, as the first one is never steered."""
    samples: int = 4
    """Continuations of each prompt."""
    tokens: int = 24
    """Length of a continuation; an end token does not end it."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int = 50
    top_p: float = 0.3
    """As the paper samples: close to what the model prefers, so that few samples say much."""
    rise: float = 0.5
    """How far steering raises the cross-entropy on plain text, in nats per token: this decides the strength of every vector."""
    texts: int = 8
    """Pieces of plain text that the cross-entropy is read on."""
    text_tokens: int = 32
    baseline_samples: int = 40
    """Unsteered continuations of each prompt that effects are differences from."""
    seed: int = 0
    """Of the choice of vectors and of every sample."""

    def __post_init__(self) -> None:
        if not self.prompts or any(not prompt.strip() for prompt in self.prompts):
            raise DataError("effects need at least one prompt, none of them empty")
        least = {"samples": 1, "tokens": 1, "top_k": 1, "texts": 1, "text_tokens": 2, "baseline_samples": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise DataError(f"effects: '{name}' must be {low} or more, not {getattr(self, name)}")
        for name in ("rise", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name == "rise" and value == 0):
                raise DataError(f"effects: '{name}' must be finite and above 0, not {value}")
        if not 0 < self.top_p <= 1:
            raise DataError(f"effects: 'top_p' must be above 0 and at most 1, not {self.top_p}")
