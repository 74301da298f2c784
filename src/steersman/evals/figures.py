"""The figures of the report of an evaluation, as HTML with the legends and words that they need.

Each method has the same colour in all of them. Knows nothing of how methods are fitted or graded.
"""

from __future__ import annotations

from steersman.auto.page import note, section
from steersman.evals.charts import Series, Spot, bars, curves, front, legend
from steersman.evals.facts import MEASURES, Evaluation, MethodResult

LABELS = {
    "behaviour": "behaviour, 0 to 1",
    "coherence": "coherence, 0 to 1",
    "product": "behaviour × coherence",
    "harmonic": "harmonic mean, 0 to 2",
}
"""What each measure is called, and its range."""


def means(found: Evaluation) -> str:
    """Bars of every measure, a method a bar."""
    colours = _colours(found)
    ranked = ordered(found)
    figures = [
        bars(
            [(r.name, r.scores[m], colours[r.name]) for r in ranked],
            title=f"{LABELS[m]}, with 95 % intervals",
            top=2.0 if m == "harmonic" else 1.0,
        )
        for m in MEASURES
    ]
    return f'<div class="charts">{"".join(figures)}</div>'


def over_strength(found: Evaluation) -> str:
    """Every measure over strength, a method a curve."""
    colours = _colours(found)
    swept = [result for result in found.methods if len(result.curve) > 1]
    fixed = [result for result in found.methods if len(result.curve) == 1]
    figures = [
        curves(
            [
                Series(
                    result.name,
                    tuple((point.strength, getattr(point, measure)) for point in result.curve),
                    tuple(s for s in result.strengths if s is not None) if measure == "product" else (),
                    colours[result.name],
                    dashed=result.control,
                )
                for result in swept
            ],
            title=LABELS[measure] + (", the chosen strengths ringed" if measure == "product" else ""),
            x_label="strength, log scale",
            levels=[(result.name, getattr(result.curve[0], measure).mean) for result in fixed],
        )
        for measure in MEASURES
    ]
    key = legend([(result.name, colours[result.name]) for result in swept])
    said = note(
        f"Over all {len(found.prompts)} prompts, with 95 % intervals as bands; controls are dashed; fine lines: what has no "
        "strength. Strength in mean residual norms; for methods of another unit (topic) it is their factor."
    )
    return section("Over strength", f'{said}{key}<div class="charts">{"".join(figures)}</div>')


def trade_off(found: Evaluation) -> str:
    """Behaviour against coherence, a spot for every method and strength."""
    colours = _colours(found)
    points = [
        Spot(
            result.name,
            point.behaviour.mean,
            point.coherence.mean,
            colours[result.name],
            f" at {point.strength:.3g}" if len(result.curve) > 1 else "",
        )
        for result in found.methods
        for point in result.curve
        if point.behaviour.mean is not None and point.coherence.mean is not None
    ]
    figure = front(points, title="Every method at every strength", x_label="behaviour", y_label="coherence upwards")
    key = legend([(result.name, colours[result.name]) for result in found.methods if result.curve])
    said = note(
        "Right and up is better: the dashed line is the Pareto front, the spots for which no other one has more of both. Large "
        f"spots lie on it. Means over all {len(found.prompts)} prompts; nothing is chosen."
    )
    return section("Behaviour against coherence", f'{said}{key}<div class="charts one">{figure}</div>')


def ordered(found: Evaluation) -> list[MethodResult]:
    """Best product first; what was not measured last."""
    return sorted(
        found.methods, key=lambda r: -(-1.0 if r.scores["product"].mean is None else r.scores["product"].mean)
    )


def _colours(found: Evaluation) -> dict[str, int]:
    return {result.name: number for number, result in enumerate(found.methods)}
