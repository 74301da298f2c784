"""A hand-made result of auto-steering, its texts as nasty as labels and answers can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from steersman.auto.facts import (
    AutoResult,
    Behaviour,
    Candidate,
    ChoiceAccuracy,
    ContrastSet,
    Epoch,
    Evidence,
    Example,
    Scores,
    Verdict,
)
from steersman.intervals import Interval
from steersman.steering.edits import Add, FeatureWeight
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

NASTY = "<script>alert('x')</script> & \"quoted\" </td></table>"
FEATURES = (
    FeatureWeight(id=17, weight=0.31, label="simple words for children"),
    FeatureWeight(id=4, weight=-0.12, label=NASTY),
    FeatureWeight(id=902, weight=0.05, label=None),
)


def interval(mean: float | None, spread: float = 0.1, n: int = 16, total: int = 16) -> Interval:
    """A mean with an interval around it."""
    low, high = (None, None) if mean is None else (mean - spread, mean + spread)
    return Interval(mean=mean, low=low, high=high, n=n, total=total)


def scores(behaviour: float, coherence: float, n: int = 16) -> Scores:
    """What one way of answering was measured to do."""
    return Scores(
        behaviour=interval(behaviour, n=n), coherence=interval(coherence), product=interval(behaviour * coherence, n=n)
    )


def evidence(verdict: Verdict = "proven", **changes: Any) -> Evidence:
    """A proof with every way of answering."""
    made = Evidence(
        scores={
            "plain": scores(0.2, 0.95),
            "steered": scores(0.7, 0.9, n=15),
            "prompted": scores(0.6, 0.92),
            "random": scores(0.22, 0.8),
        },
        against_plain=interval(0.44),
        against_random=interval(0.45),
        against_prompted=interval(0.08),
        judges=("likelihood", "embedding"),
        choice_accuracy=ChoiceAccuracy(plain=0.7, steered=0.68, n=60),
        examples=(
            Example(
                prompt="What is <b>money</b>?",
                plain="Money is a medium of exchange.\n\nIt has three functions.",
                steered="Money is like a ticket that you can swap for toys!",
                prompted=NASTY,
            ),
            Example(prompt="Ünïcode? 你好", plain="Ja.", steered="كل شيء", prompted="Oh \ud800 half."),
        ),
        verdict=verdict,
        why="steered answers score +0.44 against plain ones, and beat a random vector of the same length",
    )
    return replace(made, **changes)


def auto_result(verdict: Verdict = "proven", **changes: Any) -> AutoResult:
    """A whole result; `changes` replace its fields."""
    vector = Vector([0.01 * number + 0.5 for number in range(32)])
    recipe = Recipe(
        name="autosteer",
        edits=(Add(layer=2, vector=vector, strength=0.28, features=FEATURES),),
        description="explain things simply",
        method="autosteer/gradient",
        data={"settings": {"seed": 0}},
        evidence={"verdict": verdict},
    )
    made = AutoResult(
        behaviour=Behaviour(description=f"explain things simply {NASTY}"),
        recipe=recipe,
        features=FEATURES,
        strength=0.28,
        contrast=ContrastSet(train=(), validation=(), dropped={}, source="given"),
        candidates=(
            Candidate(id=17, label="simple words", sources=("gradient", "search"), score=1.0),
            Candidate(id=5, label=NASTY, sources=("contrast",), score=-0.4, marks=("fires everywhere",)),
        ),
        history=tuple(Epoch(step=4 * i, score=-3.0 + 0.1 * i, weights={17: 0.1 * i}) for i in range(6)),
        strengths={0.0: 0.19, 0.14: 0.4, 0.28: 0.63, 0.42: 0.3},
        evidence=evidence(verdict),
        seconds=81.24,
        log=({"event": "stage", "name": "proof", "seconds": 3.0}, {"event": "step", "step": 4, "score": -2.5}),
    )
    return replace(made, **changes)
