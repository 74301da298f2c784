"""What a judge is asked and what it answers. Knows nothing of how it judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from steersman.errors import DataError
from steersman.facts import fact


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and an answer to it."""

    prompt: str
    """What the user said."""
    answer: str


@fact
class Verdict:
    """What a judge thinks of one answer. A number that could not be had is None, with the reason: never a silent 0."""

    behaviour: float | None
    """0: not at all; 1: as clearly as can be."""
    coherence: float | None
    """0: broken, looping, or no answer to the prompt; 1: sensible text that answers it."""
    critique: str = ""
    """In words, from judges that have them."""
    missing: str | None = None
    """Why a number is missing."""

    def __post_init__(self) -> None:
        for name in ("behaviour", "coherence"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
                raise DataError(f"a judge's {name} lies between 0 and 1, not {value}")
        if (self.behaviour is None or self.coherence is None) != (self.missing is not None):
            raise DataError("a verdict lacks a number exactly where it gives a reason")

    @property
    def product(self) -> float | None:
        """Behaviour times coherence (SAE-TS, arXiv:2411.02193 section 5)."""
        return None if self.behaviour is None or self.coherence is None else self.behaviour * self.coherence


class Judge(Protocol):
    """Scores answers against one behaviour, described in a sentence."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        """One verdict an answer, in order; the same answers give the same verdicts."""
