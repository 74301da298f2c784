"""Small charts as SVG text, to stand inside a page: they take its colours by CSS class, light or dark, and need no script.

Classes: `axis` (lines), `axis zero`, `tick` (texts), `line`, `dot`, `mark`, `bar`, `bar down`. Knows nothing of what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_MANY_DOTS = 60


def line_chart(
    points: Sequence[tuple[float, float]], *, title: str, x_label: str, y_label: str, mark: float | None = None
) -> str:
    """Points joined by a line, in order of x; points that are no numbers are left out.

    Args:
        points: (x, y).
        title: what a screen reader says it is.
        x_label: below the horizontal axis.
        y_label: above the vertical one, with its unit.
        mark: the x of the point that was chosen, ringed.
    """
    there = sorted(point for point in points if all(map(math.isfinite, point)))
    if not there:
        return '<p class="none">Nothing was measured.</p>'
    xs, ys = zip(*there, strict=True)
    across, up = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - across[0]) / (across[-1] - across[0]) * (_WIDTH - _LEFT - _RIGHT)
        return right, _HEIGHT - _BOTTOM - (y - up[0]) / (up[-1] - up[0]) * (_HEIGHT - _TOP - _BOTTOM)

    floor = _HEIGHT - _BOTTOM
    parts = []
    for y in up:
        at = place(across[0], y)[1]
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_short(y)}</text>')
    for x in across:
        at = place(x, up[0])[0]
        parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 16}" text-anchor="middle">{_short(x)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in there))
    parts.append(f'<polyline class="line" points="{path}"/>')
    for point in there if len(there) <= _MANY_DOTS else ():
        x, y = place(*point)
        said = f"{_short(point[0])}: {_short(point[1])}"
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{said}</title></circle>')
    for point in there:
        if point[0] == mark:
            x, y = place(*point)
            parts.append(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
    said = escape(f"{title}: {len(there)} points, {y_label} from {_short(min(ys))} to {_short(max(ys))}")
    return (
        f'<figure><figcaption>{escape(title)} <span class="unit">({escape(y_label)})</span></figcaption>'
        f'<svg role="img" aria-label="{said}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg></figure>'
    )


def bar(value: float, largest: float) -> str:
    """A bar from the middle to the right (above 0) or to the left, as long as `value` is of `largest`."""
    share = max(-1.0, min(1.0, value / largest)) if largest > 0 and math.isfinite(value) else 0.0
    length, side = abs(share) * 60, "bar" if share >= 0 else "bar down"
    start = 60.0 if share >= 0 else 60 - length
    return (
        '<svg class="small" aria-hidden="true" viewBox="0 0 120 14"><line class="axis" x1="60" x2="60" y1="0" y2="14"/>'
        f'<rect class="{side}" x="{start:.1f}" y="2" width="{length:.1f}" height="10"/></svg>'
    )


def whisker(mean: float, low: float, high: float, *, bottom: float = 0.0, top: float = 1.0) -> str:
    """A mean with its interval on a scale from `bottom` to `top`; 0 is marked where the scale goes below it."""

    def place(value: float) -> float:
        return 4 + 112 * max(0.0, min(1.0, (value - bottom) / (top - bottom)))

    at, left, right, zero = (place(value) for value in (mean, low, high, 0.0))
    origin = f'<line class="axis zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="14"/>' if bottom < 0 else ""
    return (
        '<svg class="small" aria-hidden="true" viewBox="0 0 120 14"><line class="axis" x1="4" x2="116" y1="7" y2="7"/>'
        f'{origin}<line class="line" x1="{left:.1f}" x2="{right:.1f}" y1="7" y2="7"/>'
        f'<circle class="dot" cx="{at:.1f}" cy="7" r="4"/></svg>'
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at most `low` to at least `high`; at least two."""
    span = high - low if high > low else max(abs(low), 1.0)
    exponent = math.floor(math.log10(span / wanted))
    step = next(s for s in (base * 10.0**exponent for base in (1, 2, 5, 10)) if span / s <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _short(value: float) -> str:
    return f"{value:.4g}"
