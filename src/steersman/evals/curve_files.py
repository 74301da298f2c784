"""Curves on disk: a folder with JSON, CSV and charts, and the points measured so far. Knows nothing of how they are measured."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steersman.errors import DataError
from steersman.evals.curves import Curve, CurvePoint, Probe
from steersman.evals.store import recipe_hash
from steersman.files import replacing, write_bytes
from steersman.intervals import Interval
from steersman.models.language_model import ModelRef
from steersman.steering.recipe import Recipe

_FORMAT = 1
_PANEL_INCHES = (6.4, 3.6)
_CHANCE = 0.5


class PointFolder:
    """Points in a folder, one file each, named by a hash of all that they depend on: model, recipe, items, multiplier."""

    def __init__(self, folder: Path, model: ModelRef, recipe: Recipe) -> None:
        """Keep points of one recipe on one model; the folder may hold those of others too."""
        self.folder = folder
        self._about = [_FORMAT, model.config_hash, model.weights_hash, recipe_hash(recipe)]

    def get(self, probe: Probe, multiplier: float) -> CurvePoint | None:
        """The point, where it was measured before; what cannot be read is measured again."""
        path = self._path(probe, multiplier)
        if not path.is_file():
            return None
        try:
            return point_from(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            return None

    def put(self, probe: Probe, point: CurvePoint) -> None:
        """Keep a point.

        Raises:
            StorageError: the disk refused.
        """
        write_bytes(self._path(probe, point.multiplier), json.dumps(asdict(point)).encode())

    def _path(self, probe: Probe, multiplier: float) -> Path:
        parts = [*self._about, probe.kind, probe.measures, probe.items_sha256, probe.weights is not None, multiplier]
        return self.folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.json"


def point_from(facts: dict[str, Any]) -> CurvePoint:
    """A point as `dataclasses.asdict` wrote it.

    Raises:
        KeyError, TypeError: it is none.
    """
    answers = facts["answers"]
    return CurvePoint(
        multiplier=facts["multiplier"],
        value=Interval(**facts["value"]),
        items=tuple(facts["items"]),
        missing=facts["missing"],
        answers=None if answers is None else tuple(answers),
    )


def curve_facts(curve: Curve, *, items: bool = True) -> dict[str, Any]:
    """A curve as JSON: its points and how it goes; with `items`, the score of every item too."""
    facts = asdict(curve)
    for point in facts["points"]:
        if not items:
            del point["items"]
        if point["answers"] is None:
            del point["answers"]
    return {**facts, "trend": asdict(curve.trend)}


def save_curves(curves: Sequence[Curve], folder: Path, about: dict[str, Any]) -> list[Path]:
    """Write `curves.json`, `curves.csv`, `curves.svg` and `curves.png` into a folder; each whole or not at all.

    Args:
        curves: what was measured.
        folder: made where it is not there.
        about: what the JSON begins with: model, recipe, seed.

    Raises:
        DataError: no curves.
        StorageError: the disk refused.
    """
    facts = {**about, "curves": [curve_facts(curve) for curve in curves]}
    paths = [folder / f"curves.{ending}" for ending in ("json", "csv", "svg", "png")]
    write_bytes(paths[0], (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    write_bytes(paths[1], as_csv(curves).encode())
    for path in paths[2:]:
        draw_curves(curves, path)
    return paths


def as_csv(curves: Sequence[Curve]) -> str:
    """One row a point; a mean that is missing is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "kind", "measures", "multiplier", "mean", "low", "high", "n", "total", "missing"])
    for curve in curves:
        for point in curve.points:
            value, why = point.value, "; ".join(f"{count} x {reason}" for reason, count in point.missing.items())
            numbers = ["" if x is None else f"{x:.6f}" for x in (value.mean, value.low, value.high)]
            row = [curve.name, curve.kind, curve.measures, f"{point.multiplier:g}", *numbers, value.n, value.total, why]
            writer.writerow(row)
    return text.getvalue()


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw the curves, one panel a kind, means with their intervals; the ending of `path` says in which format.

    Raises:
        DataError: no curves.
        StorageError: the disk refused.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not curves:
        raise DataError("there are no curves to draw; measure at least one")
    kinds = list(dict.fromkeys(curve.kind for curve in curves))
    figure = Figure(figsize=(_PANEL_INCHES[0], _PANEL_INCHES[1] * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, kind in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
        for curve in curves:
            there = [point for point in curve.points if point.value.mean is not None]
            if curve.kind != kind or not there:
                continue
            means = [point.value.mean or 0.0 for point in there]
            ends = [(point.value.low, point.value.high) for point in there]
            below = [0.0 if low is None else mean - low for mean, (low, _) in zip(means, ends, strict=True)]
            above = [0.0 if high is None else high - mean for mean, (_, high) in zip(means, ends, strict=True)]
            xs = [point.multiplier for point in there]
            panel.errorbar(xs, means, yerr=[below, above], marker="o", capsize=3, label=curve.name)
        panel.axvline(0, color="0.8", zorder=0)
        if kind in ("behaviour", "persona"):
            panel.axhline(_CHANCE, color="0.8", zorder=0)
        measures = dict.fromkeys(curve.measures for curve in curves if curve.kind == kind)
        panel.set(title=kind, xlabel="multiplier (0: plain model)", ylabel=" / ".join(measures), ylim=(-0.02, 1.02))
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
    with replacing(path) as aside:
        figure.savefig(aside, format=path.suffix.removeprefix("."), dpi=144)
