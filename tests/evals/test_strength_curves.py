"""Curves over multipliers: 0 is the plain model, items are paired, gaps counted, and a broken-off run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.engine.rig import model_of
from tests.evals.curve_rig import ab_row, engine, recipe, requests, write

from steersman.engine.engine import Engine
from steersman.errors import DataError, RequestError
from steersman.evals.ab import load_ab, matching_probabilities
from steersman.evals.curve_files import PointFolder, as_csv, curve_facts, draw_curves, point_from, save_curves
from steersman.evals.curves import (
    Curve,
    CurvePoint,
    Probe,
    measure_curves,
    measure_point,
    parse_multipliers,
    weighted_bootstrap,
)
from steersman.evals.items import Scored
from steersman.evals.probes import ab_probe, choices_probe, refusal_probes, statements_probe
from steersman.intervals import bootstrap
from steersman.steering.recipe import Recipe


def linear(e: Engine, recipe: Recipe | None, strength: float) -> list[Scored]:
    """Three items that rise with the multiplier, one that cannot be scored."""
    push = strength if recipe else 0.0
    return [*(Scored(0.1 * number + 0.05 * push) for number in range(3)), Scored(None, "too long")]


def probe(score: object = linear, **more: object) -> Probe:
    return Probe("line", "behaviour", "height", score, "hash", **more)  # type: ignore[arg-type]


def curve_of(*means: float | None) -> Curve:
    points = tuple(
        CurvePoint(multiplier=float(at), value=bootstrap([mean]), items=(mean,), missing={})
        for at, mean in enumerate(means)
    )
    return Curve(name="c", kind="behaviour", measures="x", duplicates=0, weighted=False, points=points)


def test_multipliers_are_numbers_sorted_each_once() -> None:
    assert parse_multipliers("2, -1,-0,0,2") == (-1.0, 0.0, 2.0)
    for text in ("", "1,two", "1,inf"):
        with pytest.raises(RequestError, match="multipliers must be"):
            parse_multipliers(text)


def test_a_curve_has_a_point_for_each_multiplier_with_its_gaps() -> None:
    reports: list[tuple[str, int, int]] = []
    [curve] = measure_curves(
        engine(),
        recipe(),
        [probe()],
        [2, -1, 0, 2],
        report=lambda name, done, total, _: reports.append((name, done, total)),
    )
    assert [point.multiplier for point in curve.points] == [-1, 0, 2]
    assert [point.value.mean for point in curve.points] == pytest.approx([0.05, 0.1, 0.2])
    assert all((point.value.n, point.value.total, point.missing) == (3, 4, {"too long": 1}) for point in curve.points)
    assert reports[-1] == ("line", 3, 3)
    assert (curve.trend.rises, curve.trend.falls, curve.trend.steps_up) == (True, False, 2)
    # Paired: every item moves by the same, so the interval is a point, however far apart the items are.
    change = curve.trend.change
    assert change.low == pytest.approx(0.15)
    assert change.high == pytest.approx(0.15)
    assert (change.n, change.total) == (3, 4)


def test_rising_means_at_every_step() -> None:
    assert curve_of(0.1, 0.2, 0.2).trend.rises is False
    assert curve_of(0.3, 0.2, 0.1).trend.falls is True
    assert curve_of(0.1, None, 0.3).trend.rises is None
    assert curve_of(0.1).trend.rises is None


def test_zero_leaves_the_recipe_out_and_negative_turns_it_round(tmp_path: Path) -> None:
    e, path = engine(), write(tmp_path / "a.json", [ab_row(number) for number in range(4)])
    curve = measure_curves(e, recipe(), [ab_probe(path)], [-1, 0, 1])[0]
    items = load_ab(path).items
    wanted = [matching_probabilities(e, items, each) for each in (-recipe(), None, recipe())]
    assert [list(point.items) for point in curve.points] == [[s.value for s in scores] for scores in wanted]


def test_no_multipliers_and_misfit_recipes_are_refused_before_anything_is_measured() -> None:
    def never(e: Engine, recipe: Recipe | None, strength: float) -> list[Scored]:
        raise AssertionError

    with pytest.raises(RequestError, match="no multipliers"):
        measure_curves(engine(), recipe(), [probe(never)], [])


def test_weights_count() -> None:
    values, weights = [0.0, 1.0, None, 0.5], [1.0, 3.0, 9.0, 0.0]
    found = weighted_bootstrap(values, weights)
    assert found.mean == pytest.approx(0.75)
    assert (found.n, found.total) == (2, 4)
    assert weighted_bootstrap([0.2, 0.4, 0.9], [2, 2, 2]).mean == pytest.approx(0.5)
    assert weighted_bootstrap([None], [1.0]).mean is None


def test_statements_weighed_by_confidence(tmp_path: Path) -> None:
    rows = [{"statement": f"s{n}", "match": "Yes", "label_confidence": (n + 1) / 4} for n in range(3)]
    path = write(tmp_path / "t.jsonl", rows)
    plain, weighed = (statements_probe(path, by_confidence=flag) for flag in (False, True))
    one, other = (measure_point(engine(), recipe(), each, 1.0) for each in (plain, weighed))
    assert one.items == other.items
    values = [value or 0.0 for value in one.items]
    assert other.value.mean == pytest.approx(math.fsum((n + 1) / 6 * value for n, value in enumerate(values)))
    assert plain.items_sha256 != weighed.items_sha256


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    e, kept = engine(), tmp_path / "points"
    calls: list[float] = []

    def counted(e: Engine, recipe: Recipe | None, strength: float) -> list[Scored]:
        calls.append(strength if recipe else 0.0)
        return linear(e, recipe, strength)

    def run(steering: Recipe, multipliers: list[float]) -> list[Curve]:
        return measure_curves(
            e, steering, [probe(counted)], multipliers, points=PointFolder(kept, e.model.ref, steering)
        )

    first = run(recipe(), [0, 1])
    again = run(recipe(), [-1, 0, 1])
    assert calls == [0.0, 1.0, -1.0]
    assert again[0].points[1:] == first[0].points
    run(2.0 * recipe(), [1])  # Another recipe is another curve.
    next(kept.glob("*.json")).write_text("{half")  # What cannot be read is measured again.
    run(recipe(), [-1, 0, 1])
    assert len(calls) in (4, 5)


def test_points_come_back_as_they_were() -> None:
    point = measure_point(engine(), recipe(), probe(), 0.5)
    curve = Curve(name="c", kind="safety", measures="x", duplicates=0, weighted=False, points=(point,))
    facts = json.loads(json.dumps({**curve_facts(curve)["points"][0], "answers": None}))
    assert point_from(facts) == point
    assert "items" not in curve_facts(curve, items=False)["points"][0]


def test_results_are_written_whole(tmp_path: Path) -> None:
    curves = measure_curves(engine(), recipe(), [probe(), probe(weights=(1.0, 2.0, 0.0, 1.0))], [-1, 0, 1])
    paths = save_curves(curves, tmp_path / "out", {"seed": 0})
    assert [path.name for path in paths] == ["curves.json", "curves.csv", "curves.svg", "curves.png"]
    assert len(json.loads(paths[0].read_text())["curves"]) == 2
    assert len(as_csv(curves).splitlines()) == 1 + 6
    assert paths[2].read_text().startswith("<?xml")
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="no curves to draw"):
        draw_curves([], tmp_path / "none.svg")


def test_a_curve_without_any_number_is_written_with_empty_cells(tmp_path: Path) -> None:
    def nothing(e: Engine, recipe: Recipe | None, strength: float) -> list[Scored]:
        return [Scored(None, "unread")] * 2

    curves = measure_curves(engine(), recipe(), [probe(nothing)], [0, 1])
    assert as_csv(curves).splitlines()[1] == "line,behaviour,height,0,,,,0,2,2 x unread"
    draw_curves(curves, tmp_path / "empty.svg")


def test_every_kind_of_file_has_its_probe(tmp_path: Path) -> None:
    asked = write(tmp_path / "h.json", requests(4))
    probes = [
        choices_probe(write(tmp_path / "c.jsonl", [{"query": "Why?", "choices": ["a", "b"], "gold": 0}])),
        ab_probe(write(tmp_path / "ab.json", [ab_row()])),
        statements_probe(write(tmp_path / "s.jsonl", [{"statement": "I like art", "match": "Yes"}])),
        *refusal_probes(asked, shots=(0, 2), max_tokens=4),
    ]
    assert [each.kind for each in probes] == ["capability", "behaviour", "persona", "safety", "safety"]
    curves = measure_curves(engine(), recipe(), probes, [0])
    assert [len(curve.points[0].items) for curve in curves] == [1, 1, 1, 4, 4]
    with pytest.raises(DataError, match="use fewer"):
        refusal_probes(asked, shots=(4,))
    assert model_of("llama").is_chat


def test_a_single_item_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    found = weighted_bootstrap([0.2, None], [0.5, 1.0])
    assert (found.mean, found.low, found.high, found.n, found.total) == (0.2, None, None, 1, 2)
    paths = save_curves([curve_of(0.2, 0.4)], tmp_path, {})
    assert all(path.stat().st_size for path in paths)
    assert "c,behaviour,x,0,0.200000,,,1,1," in paths[1].read_text()
