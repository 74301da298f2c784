"""What goes into the engine and what comes out: frozen facts, checked at birth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from steersman.engine.guard import Guard, GuardEvent
from steersman.errors import RequestError
from steersman.facts import fact
from steersman.models.language_model import Prompt
from steersman.steering.recipe import Recipe

FinishReason = Literal["stop", "length", "abort", "guard", "cancelled"]
"""`stop`: end token or stop string; `length`: max_tokens or context; `abort`: the recipe's condition; `guard`: degenerate."""


@fact
class Sampling:
    """How the next token is chosen. The defaults are greedy."""

    temperature: float = 0.0
    """0 takes the likeliest token; higher values spread the choice."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together hold this probability."""
    top_k: int = 0
    """Choose among this many likeliest tokens; 0 means all."""
    repetition_penalty: float = 1.0
    """Logits of tokens already read or written are divided (where positive) or multiplied (where negative) by this."""
    seed: int | None = None
    """Makes sampled answers repeatable, alone or in any batch; None draws a seed, and the result names it."""
    stop: tuple[str, ...] = ()
    """End before the first of these strings; it is not part of the text."""
    max_tokens: int = 128
    """Write at most this many tokens."""
    ignore_eos: bool = False
    """Go on after an end token (for measurements)."""

    def __post_init__(self) -> None:
        checks = [
            (math.isfinite(self.temperature) and 0.0 <= self.temperature <= 100.0, "temperature", "between 0 and 100"),
            (0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1"),
            (self.top_k >= 0, "top_k", "0 (all) or more"),
            (0.01 <= self.repetition_penalty <= 100.0, "repetition_penalty", "between 0.01 and 100 (1 is none)"),
            (self.max_tokens >= 1, "max_tokens", "1 or more"),
            (self.seed is None or 0 <= self.seed < 2**63, "seed", "between 0 and 2^63 - 1"),
            (
                isinstance(self.stop, tuple) and len(self.stop) <= 16 and all(self.stop),  # type: ignore[redundant-expr]
                "stop",
                "a tuple of at most 16 strings, none of them empty",
            ),
        ]
        for good, name, rule in checks:
            if not good:
                raise RequestError(f"{name} must be {rule}, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to answer, and how. Steering lives here, never on the model."""

    prompt: Prompt
    """Text to continue, or chat messages to answer."""
    recipe: Recipe | None = None
    """What steers the answer."""
    strength: float = 1.0
    """Factor on the recipe's strengths."""
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen, so it can be shared
    guard: Guard = Guard()  # noqa: RUF009 - frozen, so it can be shared
    logprobs: int | None = None
    """None: none; n: the log-probability of each written token, and of the n likeliest ones beside it."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise RequestError(f"strength must be a finite number, not {self.strength}")
        if self.logprobs is not None and not 0 <= self.logprobs <= 100:
            raise RequestError(f"logprobs must lie between 0 and 100, not {self.logprobs}")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the steered model found a token it wrote."""

    token_id: int
    logprob: float
    """Natural logarithm, before temperature, penalty and truncation."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens there and their log-probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An answer."""

    text: str
    token_ids: tuple[int, ...]
    """What was written, the end token or stop string included."""
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    """What sampling was seeded with."""
    strength: float
    """Factor on the recipe's strengths at the end; lower than asked where the guard softened it."""
    guard_events: tuple[GuardEvent, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer."""

    text: str
    result: Result | None = None
    """The whole answer, with the last chunk only."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens settled since the last text, where the request asks for them: those of `text` are among them."""
