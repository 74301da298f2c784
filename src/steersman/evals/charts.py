"""Charts of a comparison as SVG text: curves with bands, bars with intervals, a Pareto front. No script, colours by CSS class.

Classes beside those of `auto.charts`: `s0` to `s11` (a series), `spot`, `part`, `curve`, `dashed`, `band`, `level`, `front`. A
number that is missing is left out, not drawn as 0. Knows nothing of methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from steersman.auto.charts import ticks
from steersman.evals.statistics import pareto
from steersman.intervals import Interval

_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 12, 40
_ROW, _NAMES = 26, 96
_LETTER, _LINE = 7.5, 13.0
"""About how wide a letter and how high a line of a label is."""
_STEPS = 40
_COLOURS = 12
NOTHING = '<p class="none">Nothing was measured.</p>'

_Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """A curve."""

    name: str
    points: tuple[tuple[float, Interval], ...]
    """x, and the mean with its interval there."""
    ringed: tuple[float, ...] = ()
    """x of points that were chosen."""
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Spot:
    """One point of a front."""

    name: str
    x: float
    y: float
    colour: int = 0
    note: str = ""
    """What tells it from others of its name."""


def curves(
    series: Sequence[Series], *, title: str, x_label: str, levels: Sequence[tuple[str, float | None]] = ()
) -> str:
    """Means over x, joined, with their intervals as bands; y from 0 to 1 or as high as the highest.

    Args:
        series: x above 0, drawn on a logarithmic axis.
        title: above the chart.
        x_label: below the horizontal axis.
        levels: names and heights of what has no x: a fine line across.
    """
    there = [(each, _measured(each)) for each in series if _measured(each)]
    if not there:
        return NOTHING
    xs = [x for _, points in there for x, *_ in points]
    flat = [(name, y) for name, y in levels if y is not None]
    top = max(1.0, *(high for _, points in there for *_, high in points), *(y for _, y in flat))
    frame, place = _frame((min(xs), max(xs)), (0.0, top), x_label, log=True)
    lines, names = _levels(flat, place)
    parts = [frame, *lines]
    for each, points in there:
        colour = f"s{each.colour % _COLOURS}"
        upper = [place(x, high) for x, _, _, high in points]
        lower = [place(x, low) for x, _, low, _ in points]
        parts.append(f'<polygon class="band {colour}" points="{_path([*upper, *lower[::-1]])}"/>')
        kind = f"curve dashed {colour}" if each.dashed else f"curve {colour}"
        parts.append(f'<polyline class="{kind}" points="{_path([place(x, mean) for x, mean, *_ in points])}"/>')
        for x, mean, *_ in points:
            across, up = place(x, mean)
            parts.append(
                f'<circle class="spot {colour}" cx="{across:.1f}" cy="{up:.1f}" r="3">'
                f"<title>{escape(each.name)} at {x:.3g}: {mean:.2f}</title></circle>"
            )
            if x in each.ringed:
                parts.append(f'<circle class="mark" cx="{across:.1f}" cy="{up:.1f}" r="6"/>')
    said = f"{title}: {len(there)} curves: " + ", ".join(each.name for each, _ in there)
    return _figure(title, said, "".join([*parts, *names]), _HEIGHT)


def bars(rows: Sequence[tuple[str, Interval, int]], *, title: str, top: float = 1.0) -> str:
    """A bar a row with its interval, as long as the mean is of `top`; each with a name, an interval and a colour."""
    if not any(interval.mean is not None for _, interval, _ in rows):
        return NOTHING
    width = _WIDTH - _NAMES - 60
    parts = []
    for number, (name, interval, colour) in enumerate(rows):
        y = _TOP + number * _ROW
        parts.append(f'<text class="tick" x="{_NAMES - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        if interval.mean is None:
            parts.append(f'<text class="tick" x="{_NAMES + 4}" y="{y + 14}">not measured</text>')
            continue
        low, high = (interval.mean if end is None else end for end in (interval.low, interval.high))
        length, left, right = (max(0.0, min(1.0, value / top)) * width for value in (interval.mean, low, high))
        parts.append(
            f'<rect class="spot part s{colour % _COLOURS}" x="{_NAMES}" y="{y + 3}" width="{length:.1f}" height="14"/>'
        )
        parts.append(
            f'<line class="whisker" x1="{_NAMES + left:.1f}" x2="{_NAMES + right:.1f}" y1="{y + 10}" y2="{y + 10}"/>'
        )
        parts.append(
            f'<text class="tick" x="{_NAMES + max(length, right) + 6:.1f}" y="{y + 14}">{interval.mean:.2f}</text>'
        )
    said = f"{title}: " + ", ".join(f"{name} {_said(interval.mean)}" for name, interval, _ in rows)
    return _figure(title, said, "".join(parts), _TOP * 2 + len(rows) * _ROW)


def front(points: Sequence[Spot], *, title: str, x_label: str, y_label: str) -> str:
    """Spots by x and y; those that no other one beats in both are joined, and each name among them is written once."""
    if not points:
        return NOTHING
    best = pareto([(each.x, each.y) for each in points])
    frame, place = _frame((0.0, max(1.0, *(each.x for each in points))), (0.0, 1.0), x_label)
    at = [place(each.x, each.y) for each in points]
    line = [at[i] for i in best]
    parts, named = [frame, f'<polyline class="front" points="{_path(line)}"/>'], set[str]()
    taken = [(*spot, *spot) for spot in (*at, *_along(line))]
    for number, each in enumerate(points):
        across, up = at[number]
        radius = 5 if number in best else 3
        parts.append(
            f'<circle class="spot s{each.colour % _COLOURS}" cx="{across:.1f}" cy="{up:.1f}" r="{radius}">'
            f"<title>{escape(each.name + each.note)}: {each.x:.2f}, {each.y:.2f}</title></circle>"
        )
        if number in best and each.name not in named:
            label = _named(each.name, across, up, taken)
            named |= {each.name} if label else set()
            parts.append(label)
    said = f"{title}: on the front {', '.join(dict.fromkeys(points[i].name for i in best))}"
    return _figure(f"{title}: {x_label} to the right, {y_label}", said, "".join(parts), _HEIGHT)


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Names beside their colours."""
    items = "".join(
        f'<li><svg class="key" aria-hidden="true" viewBox="0 0 12 12"><rect class="spot s{colour % _COLOURS}" width="12" '
        f'height="12"/></svg>{escape(name)}</li>'
        for name, colour in names
    )
    return f'<ul class="legend">{items}</ul>'


def _measured(series: Series) -> list[tuple[float, float, float, float]]:
    """x, mean, low and high of the points that are there."""
    return sorted(
        (x, each.mean, each.mean if each.low is None else each.low, each.mean if each.high is None else each.high)
        for x, each in series.points
        if each.mean is not None
    )


def _named(name: str, across: float, up: float, taken: list[tuple[float, float, float, float]]) -> str:
    """A name beside its spot where it covers nothing that is `taken` (boxes; its own is added), or none: colours tell too."""
    width, height = _LETTER * len(name), 11.0
    for left, top in (
        (across + 8, up - 4),
        (across + 8, up + 6),
        (across - 8 - width, up - 4),
        (across - 8 - width, up + 6),
        (across - width / 2, up + 10),
        (across - width / 2, up - 8 - height),
    ):
        box = (left, top, left + width, top + height)
        inside = left >= _LEFT and box[2] <= _WIDTH and top >= 0 and box[3] <= _HEIGHT - _BOTTOM
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return f'<text class="tick" x="{left:.1f}" y="{top + height - 1:.1f}">{escape(name)}</text>'
    return ""


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    gap = 3.0
    return one[0] < other[2] + gap and other[0] < one[2] + gap and one[1] < other[3] + gap and other[1] < one[3] + gap


def _along(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Places all along a line, so close that no name fits between them."""
    return [
        (x + (to_x - x) * step / _STEPS, y + (to_y - y) * step / _STEPS)
        for (x, y), (to_x, to_y) in pairwise(line)
        for step in range(1, _STEPS)
    ]


def _levels(levels: Sequence[tuple[str, float]], place: _Place) -> tuple[list[str], list[str]]:
    """Fine lines across, and their names at the right end; lines too near for a name each share one."""
    parts, names, named = [], list[str](), list[tuple[float, list[str]]]()
    for name, y in sorted(levels, key=lambda level: level[1]):
        at = place(1.0, y)[1]
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        if named and named[-1][0] - at < _LINE:
            named[-1][1].append(name)
        else:
            named.append((at, [name]))
    for at, each in named:
        names.append(
            f'<text class="tick above" x="{_WIDTH - _RIGHT}" y="{max(at - 3, 10.0):.1f}" text-anchor="end">'
            f"{escape(', '.join(each))}</text>"
        )
    return parts, names


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that lie from `low` to `high`, with one at or beyond either end."""
    first, last = math.floor(math.log10(low) - 1e-9), math.ceil(math.log10(high) + 1e-9)
    steps = [base * 10.0**power for power in range(first, last + 1) for base in (1, 2, 5)]
    start = max(number for number, step in enumerate(steps) if step <= low * (1 + 1e-9))
    end = min(number for number, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[start : max(end, start + 1) + 1]


def _frame(xs: tuple[float, float], ys: tuple[float, float], x_label: str, log: bool = False) -> tuple[str, _Place]:
    """Axes with their ticks, and where a point lies."""
    across, up = _log_ticks(*xs) if log else ticks(*xs), ticks(*ys)
    scale: Callable[[float], float] = math.log10 if log else float
    begin, wide = scale(across[0]), scale(across[-1]) - scale(across[0])

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (scale(x) - begin) / wide * (_WIDTH - _LEFT - _RIGHT)
        return right, _HEIGHT - _BOTTOM - (y - up[0]) / (up[-1] - up[0]) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for y in up:
        at = place(across[0], y)[1]
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in across:
        at = place(x, up[0])[0]
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:.4g}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts), place


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _figure(title: str, said: str, content: str, height: int) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg role="img" aria-label="{escape(said)}" '
        f'viewBox="0 0 {_WIDTH} {height}">{content}</svg></figure>'
    )


def _said(mean: float | None) -> str:
    return "not measured" if mean is None else f"{mean:.2f}"
