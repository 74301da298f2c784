"""From graded answers to results: curves over strength, scores at strengths chosen on other prompts, tests. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from steersman.evals.facts import MEASURES, Fitted, Grade, MethodResult, Point, Sample, Written
from steersman.evals.score import axbench
from steersman.evals.statistics import CrossFit, Paired, Values, best_strength, compare, cross_fit, holm
from steersman.intervals import bootstrap

REFERENCES = ("prompt", "plain", "random")
"""Ways of answering that every method is compared with."""


@dataclass(frozen=True, slots=True)
class Swept:
    """A method's answers and grades: by strength, one a prompt."""

    fitted: Fitted
    written: Mapping[float, Sequence[Written]]
    grades: Mapping[float, Sequence[Grade]]

    def values(self, measure: str, strength: float) -> list[float | None]:
        """One measure of all prompts at a strength."""
        return [value_of(grade, measure) for grade in self.grades[strength]]


def value_of(grade: Grade, measure: str) -> float | None:
    """One of `MEASURES`."""
    if measure == "harmonic":
        return axbench(grade)
    value: float | None = getattr(grade, measure)
    return value


def results_of(
    swept: Sequence[Swept], n: int, parts: tuple[Sequence[int], Sequence[int]], seed: int = 0
) -> tuple[list[MethodResult], dict[str, CrossFit]]:
    """Every method's result, and at which strength each prompt was reported.

    Args:
        swept: of all methods; those that could not be fitted have no answers.
        n: prompts.
        parts: the halves of the prompts.
        seed: of the tests.
    """
    fits = {each.fitted.name: _fit(each, n, parts) for each in swept}
    taken = {each.fitted.name: _taken(each, fits[each.fitted.name], n) for each in swept}
    products = {name: values["product"] for name, values in taken.items()}
    found = []
    for each in swept:
        name = each.fitted.name
        others = {ref: products[ref] for ref in REFERENCES if ref in products and ref != name}
        found.append(
            MethodResult(
                name=name,
                control=each.fitted.control,
                note=each.fitted.note,
                strengths=fits[name].strengths,
                scores={measure: bootstrap(values, seed=seed) for measure, values in taken[name].items()},
                best_product=_best_product(each),
                curve=_curve(each, seed),
                against={ref: compare(products[name], values, seed) for ref, values in others.items()},
                error=each.fitted.error,
            )
        )
    return corrected(found), fits


def corrected(results: Sequence[MethodResult]) -> list[MethodResult]:
    """The results with p-values corrected over the methods (controls aside) that are compared with the same reference."""
    made = list(results)
    for ref in REFERENCES:
        family = {r.name: r.against[ref].p for r in results if ref in r.against and not r.control}
        adjusted = holm(family)
        for place, result in enumerate(made):
            if result.name in family:
                paired: Paired = replace(result.against[ref], p_holm=adjusted[result.name])
                made[place] = replace(result, against={**result.against, ref: paired})
    return made


def samples_of(swept: Sequence[Swept], fits: Mapping[str, CrossFit], prompts: Sequence[str]) -> list[Sample]:
    """Every answer with its scores, one row each."""
    return [
        Sample(
            method=each.fitted.name,
            strength=strength,
            prompt=prompt,
            answer=each.written[strength][place].text,
            behaviour=grade.behaviour,
            coherence=grade.coherence,
            product=grade.product,
            harmonic=axbench(grade),
            missing=grade.missing,
            chosen=fits[each.fitted.name].taken[place] == strength,
        )
        for each in swept
        for strength, grades in each.grades.items()
        for place, (prompt, grade) in enumerate(zip(prompts, grades, strict=True))
    ]


def _fit(each: Swept, n: int, parts: tuple[Sequence[int], Sequence[int]]) -> CrossFit:
    if not each.grades:
        return CrossFit((None, None), (None,) * n)
    return cross_fit({strength: each.values("product", strength) for strength in each.grades}, parts)


def _taken(each: Swept, fit: CrossFit, n: int) -> dict[str, Values]:
    """By measure, every prompt's value at its strength; None where there is none."""
    return {
        measure: [
            None if (strength := fit.taken[place]) is None else value_of(each.grades[strength][place], measure)
            for place in range(n)
        ]
        for measure in MEASURES
    }


def _best_product(each: Swept) -> float | None:
    products = {strength: each.values("product", strength) for strength in each.grades}
    n = max((len(values) for values in products.values()), default=0)
    best = best_strength(products, range(n))
    return None if best is None else bootstrap(products[best]).mean


def _curve(each: Swept, seed: int) -> tuple[Point, ...]:
    return tuple(
        Point(
            strength=strength,
            **{measure: bootstrap(each.values(measure, strength), seed=seed) for measure in MEASURES},
        )
        for strength in sorted(each.grades)
    )
