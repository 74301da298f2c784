"""Watch an answer for degeneration, and say when its steering must be lowered. Knows nothing of models or batches.

Two measures over the last tokens written: how much of it repeats, and how unlikely the *unsteered* model finds it. Steered text
is always somewhat unlikely; broken text is far more so. Repetition is counted apart because it is likely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steersman.errors import RequestError
from steersman.facts import check_choices, fact

Mode = Literal["off", "warn", "soften", "stop"]


@fact
class Guard:
    """What to watch for, and what to do."""

    mode: Mode = "off"
    """`warn`: only note it; `stop`: end the answer; `soften`: lower the strength, write again from where it was last good.

    What is written again is never streamed: with `soften`, a stream is up to `every_tokens` behind."""
    every_tokens: int = 8
    """Look after this many written tokens."""
    window_tokens: int = 32
    """Look at this many of the last tokens."""
    max_repetition: float = 0.4
    """Share of repeated 3-grams in the window above which text counts as degenerate (sensible text: below 0.2)."""
    min_logprob: float | None = -3.3
    """Mean log-probability a token, by the unsteered model, below which text counts as degenerate; None: do not measure.

    On the bundled model plain answers lie at -0.7 to -1.4, well-steered ones at -1.5 to -3, broken ones below -3.5."""
    soften_by: float = 0.6
    """Factor on the strength at each softening; below a tenth of what was asked, steering goes off.

    At most 0.95: each softening writes `every_tokens` again, so the way down must have an end."""

    def __post_init__(self) -> None:
        check_choices(self, RequestError)
        checks = [
            (self.every_tokens >= 1, "every_tokens", "1 or more"),
            (self.window_tokens >= 4, "window_tokens", "4 or more"),
            (0.0 <= self.max_repetition <= 1.0, "max_repetition", "between 0 and 1"),
            (self.min_logprob is None or -math.inf < self.min_logprob < 0.0, "min_logprob", "negative and finite"),
            (0.0 <= self.soften_by <= 0.95, "soften_by", "between 0 and 0.95"),
        ]
        for good, name, rule in checks:
            if not good:
                raise RequestError(f"guard: {name} must be {rule}, not {getattr(self, name)}")

    def is_due(self, written: int) -> bool:
        """Whether to look now, after `written` tokens."""
        return self.mode != "off" and written >= self.every_tokens and written % self.every_tokens == 0


@dataclass(frozen=True, slots=True)
class GuardEvent:
    """Something the guard saw, and what it did."""

    at_token: int
    """How many tokens had been written."""
    reason: Literal["repetition", "unlikely"]
    measured: float
    limit: float
    strength: float
    """Factor on the recipe's strengths from here on."""
    rewound_to: int | None = None
    """How many tokens were kept, where the rest is written again; a loop, once written, would go on by itself."""


def repetition(token_ids: Sequence[int]) -> float:
    """Share of 3-grams that occurred before in the same text: 0 for all different, towards 1 for a loop."""
    grams = [tuple(token_ids[i : i + 3]) for i in range(len(token_ids) - 2)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def judge(guard: Guard, written: Sequence[int], mean_logprob: float | None, strength: float) -> GuardEvent | None:
    """What the guard makes of the answer so far; None when all is well.

    Args:
        guard: the limits.
        written: token ids of the answer so far.
        mean_logprob: of the window's tokens by the unsteered model; None when it is not measured.
        strength: the present factor on the recipe's strengths.
    """
    repeated = repetition(written[-guard.window_tokens :])
    # A handful of tokens repeats by chance; wait for half a window.
    if len(written) >= guard.window_tokens // 2 and repeated > guard.max_repetition:
        return GuardEvent(len(written), "repetition", repeated, guard.max_repetition, _next(guard, strength))
    if mean_logprob is not None and guard.min_logprob is not None and mean_logprob < guard.min_logprob:
        return GuardEvent(len(written), "unlikely", mean_logprob, guard.min_logprob, _next(guard, strength))
    return None


def _next(guard: Guard, strength: float) -> float:
    return strength * guard.soften_by if guard.mode == "soften" else strength
