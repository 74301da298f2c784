"""What an evaluation is asked, what its parts hand on, and what comes out. Frozen data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steersman.errors import DataError
from steersman.evals.statistics import Paired
from steersman.facts import fact
from steersman.intervals import Interval

if TYPE_CHECKING:
    from steersman.steering.recipe import Recipe

STRENGTHS: tuple[float, ...] = (0.06, 0.1, 0.16, 0.25, 0.4, 0.65)
"""Lengths of what is added, in mean residual norms: from hardly felt to broken text on most models."""
MEASURES = ("behaviour", "coherence", "product", "harmonic")
"""What is reported of every answer."""

Progress = Callable[[str, int, int, str], None]
"""Told what is being done, how much of it, of how much, and a note."""


@fact
class EvalSettings:
    """How much is done; the defaults take some minutes on two cores with the bundled model."""

    prompts: int = 16
    """Held-out prompts; half of them choose the strength for the other half."""
    strengths: tuple[float, ...] = STRENGTHS
    """Factors on recipes that are one mean residual norm long; methods that measure otherwise bring their own."""
    tokens: int = 40
    """Length of the answers."""
    tuning: int = 24
    """Prompts for which the model writes examples where the behaviour comes with none."""
    validation: int = 8
    """Further ones, by which methods decide when to stop."""
    layer: int | None = None
    """Decoder block that vectors are added to; by default the SAE's."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("prompts", 4), ("tokens", 1), ("tuning", 6), ("validation", 1)):
            if getattr(self, name) < least:
                raise DataError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if not self.strengths or any(not (math.isfinite(s) and s > 0) for s in self.strengths):
            raise DataError("strengths must be numbers above 0; the controls bring 0 and the wrong sign themselves")
        if len(set(self.strengths)) < len(self.strengths):
            raise DataError("a strength stands twice among the strengths; name each once")


@fact
class Fitted:
    """What a method came to for one behaviour."""

    name: str
    recipe: Recipe | None = None
    """At unit strength: one mean residual norm is added."""
    system: str | None = None
    """A system prompt."""
    strengths: tuple[float, ...] | None = None
    """What is swept where the settings' strengths do not fit the method's unit; (1.0,) where there is nothing to choose."""
    control: bool = False
    """Not a way to steer, but what one must beat."""
    note: str = ""
    """For people: what was chosen."""
    error: str | None = None
    """Why there is none: the method is reported as a gap."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer that is wanted."""

    prompt: str
    recipe: Recipe | None = None
    strength: float = 1.0
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """The answer, or why there is none."""

    text: str | None
    error: str | None = None


@fact
class Grade:
    """What one answer was found to be; every number in [0, 1], or None with the reason."""

    behaviour: float | None
    coherence: float | None
    relevance: float | None
    """How far it is about its prompt."""
    fluency: float | None
    """How well it is written: likely words, in letters, not repeated."""
    missing: str | None = None
    critique: str = ""

    @property
    def product(self) -> float | None:
        """Behaviour times coherence (SAE-TS, arXiv:2411.02193 section 5)."""
        return None if self.behaviour is None or self.coherence is None else self.behaviour * self.coherence


@fact
class Sample:
    """One answer of the sweep with its scores."""

    method: str
    strength: float
    prompt: str
    answer: str | None
    behaviour: float | None
    coherence: float | None
    product: float | None
    harmonic: float | None
    """AxBench's: of concept, instruction and fluency, 0 to 2."""
    missing: str | None
    chosen: bool
    """Whether this is the strength that the prompt is reported at."""


@fact
class Point:
    """One strength of a method's curve, over all prompts."""

    strength: float
    behaviour: Interval
    coherence: Interval
    product: Interval
    harmonic: Interval


@fact
class MethodResult:
    """What one method was measured to do."""

    name: str
    control: bool
    note: str
    strengths: tuple[float | None, float | None]
    """Chosen on the second half of the prompts for the first, and the other way round."""
    scores: dict[str, Interval]
    """By measure, every prompt at the strength that was chosen on the other half."""
    best_product: float | None
    """Largest mean product over strengths, chosen and reported on the same prompts as in the SAE-TS paper: too high by the
    choosing."""
    curve: tuple[Point, ...]
    against: dict[str, Paired]
    """Product against other ways of answering (`prompt`, `plain`, `random`), prompt by prompt."""
    error: str | None = None


@fact
class Battle:
    """Answers of two methods, judged side by side in both orders."""

    one: str
    other: str
    wins: int
    """Of `one`: in both orders."""
    losses: int
    ties: int
    """Said to be one, or the two orders disagree."""
    missing: int
    """Not judged, or an answer was not there."""
    total: int
    p: float | None = None
    """Two-sided, of wins against losses; None without either."""
    p_holm: float | None = None
    """The same, corrected over all battles."""


@fact
class Evaluation:
    """A whole comparison."""

    behaviour: str
    description: str
    criterion: str
    examples: str
    """Where the examples came from, and how many."""
    model: str
    sae: str | None
    layer: int
    judges: tuple[str, ...]
    prompts: tuple[str, ...]
    halves: tuple[tuple[int, ...], tuple[int, ...]]
    methods: tuple[MethodResult, ...]
    battles: tuple[Battle, ...]
    samples: tuple[Sample, ...]
    settings: EvalSettings
    seconds: float
