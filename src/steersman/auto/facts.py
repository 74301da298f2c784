"""What auto-steering is given, what its parts hand on, and what comes out. Frozen data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from steersman.auto.opposites import contradiction
from steersman.errors import DataError
from steersman.facts import fact
from steersman.intervals import Interval
from steersman.steering.edits import FeatureWeight
from steersman.steering.recipe import Recipe

Source = Literal["gradient", "contrast", "search"]
"""How a candidate feature was found."""

Verdict = Literal["proven", "not proven", "no effect"]
"""`proven`: the steered answers show the behaviour more than plain ones and than a random vector of the same norm, the 95 %
intervals of the differences above 0; `no effect`: no strength improved on plain answers while tuning."""


@fact
class Behaviour:
    """How the model should behave."""

    description: str
    """In a sentence, as one would ask for it: "explain things in a way that children can understand"."""
    opposite: str | None = None
    """The opposite, where there is one; its features are pushed down."""

    def __post_init__(self) -> None:
        if not self.description.strip():
            raise DataError("the behaviour is empty; say in a sentence how the model should behave")
        if len(self.description) > 2000:
            raise DataError(f"the behaviour has {len(self.description)} characters; say it in at most 2,000")
        if self.opposite is not None and _bare(self.opposite) == _bare(self.description):
            raise DataError("the opposite says the same as the behaviour; give another, or none")
        pair = contradiction(self.description)
        if pair is not None:
            raise DataError(
                f"the behaviour contradicts itself: {pair[0]!r} and {pair[1]!r} exclude each other; ask for one of them"
            )


def _bare(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.casefold()))


@fact
class ContrastItem:
    """A prompt with an answer that shows the behaviour and a plain one."""

    prompt: str
    positive: str
    negative: str


@fact
class ContrastSet:
    """What the behaviour looks like, on prompts to tune on and on others to validate with."""

    train: tuple[ContrastItem, ...]
    validation: tuple[ContrastItem, ...]
    dropped: dict[str, int]
    """How many positives were left out, by reason."""
    source: str
    """Who wrote the answers."""


@fact
class Candidate:
    """A feature that may carry the behaviour."""

    id: int
    label: str | None
    sources: tuple[Source, ...]
    score: float
    """Of the source that ranked it best, each source scaled to at most 1; negative: to be pushed down."""
    marks: tuple[str, ...] = ()
    """Why it is doubtful: fires everywhere, only on formatting, never."""


@fact
class Epoch:
    """One point of an optimiser's history."""

    step: int
    score: float
    """What the optimiser maximises, measured on validation prompts."""
    weights: dict[int, float]
    note: str = ""
    """A critique, a reason."""


@fact
class Tuned:
    """What an optimiser ends with."""

    weights: dict[int, float]
    """Of each feature; only their ratios and signs count."""
    history: tuple[Epoch, ...]
    method: str
    strength: float | None = None
    """Length of what is added, in mean residual norms, where the method chose it by the answers it gave."""


@fact
class Scores:
    """What one way of answering was measured to do, over held-out prompts."""

    behaviour: Interval
    coherence: Interval
    product: Interval


@fact
class Example:
    """Answers to one held-out prompt."""

    prompt: str
    plain: str
    steered: str
    prompted: str


@fact
class ChoiceAccuracy:
    """Share of multiple-choice questions answered rightly, by likelihood."""

    plain: float
    steered: float
    n: int


@fact
class Evidence:
    """The proof: held-out prompts, used nowhere before."""

    scores: dict[str, Scores]
    """By way of answering: plain, steered, prompted, random."""
    against_plain: Interval
    """Product, steered minus plain, prompt by prompt."""
    against_random: Interval
    against_prompted: Interval
    judges: tuple[str, ...]
    choice_accuracy: ChoiceAccuracy | None
    examples: tuple[Example, ...]
    verdict: Verdict
    why: str
    """The verdict in words."""


@dataclass(frozen=True, slots=True)
class AutoResult:
    """What auto-steering comes to."""

    behaviour: Behaviour
    recipe: Recipe
    """Carries the evidence."""
    features: tuple[FeatureWeight, ...]
    strength: float
    """Length of what is added, in mean residual norms."""
    contrast: ContrastSet
    candidates: tuple[Candidate, ...]
    history: tuple[Epoch, ...]
    strengths: dict[float, float]
    """Validation score of each strength that was tried."""
    evidence: Evidence
    seconds: float
    log: tuple[dict[str, JsonValue], ...]
    """What happened, in order."""


Report = Callable[[str, dict[str, JsonValue]], None]
"""Called with the name of an event and its facts, as it happens."""
