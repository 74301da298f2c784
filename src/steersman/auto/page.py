"""Parts of a page of HTML that stands on its own: no script, nothing fetched, light or dark as the reader's system is.

Used by the reports of auto-steering and of evaluations. Texts that are handed on as `html` are HTML already; all others are
escaped here. Knows nothing of what is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from steersman.auto.charts import whisker
from steersman.intervals import Interval

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(over: str, title: str, html: str, styles: Sequence[str]) -> str:
    """A whole page.

    Args:
        over: a line above the heading.
        title: the heading.
        html: what stands below it.
        styles: names of the style sheets among the package's data, in order.
    """
    data = resources.files("steersman") / "data"
    style = "".join((data / name).read_text(encoding="utf-8") for name in styles)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(title)}'
        f'</title><style>{style}</style></head><body><main><p class="over">{escape(over)}</p>'
        f'<h1 dir="auto">{escape(title)}</h1>{html}</main></body></html>\n'
    )


def section(title: str, html: str) -> str:
    """A part of a page under its own heading."""
    return f"<section><h2>{escape(title)}</h2>{html}</section>"


def note(text: str) -> str:
    """A paragraph that explains."""
    return f'<p class="note">{escape(text)}</p>'


def facts(said: Mapping[str, str]) -> str:
    """Short facts side by side, each under its name."""
    items = (f'<div><dt>{escape(key)}</dt><dd dir="auto">{escape(value)}</dd></div>' for key, value in said.items())
    return f'<dl class="facts">{"".join(items)}</dl>'


def terms(said: Mapping[str, str]) -> str:
    """Words and what they mean, one below the other."""
    items = (f"<div><dt>{escape(word)}</dt><dd>{escape(meaning)}</dd></div>" for word, meaning in said.items())
    return f'<dl class="terms">{"".join(items)}</dl>'


def table(html: str, heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; the first of each row is its heading.

    Args:
        html: the caption.
        heads: of the columns, texts; an empty one is no heading.
        rows: HTML.
        kind: a class of the style sheet, for the whole table.
    """
    head = "".join(f'<th scope="col">{escape(text)}</th>' if text else "<td></td>" for text in heads)
    body = "".join(
        f'<tr><th scope="row" dir="auto">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    made = f"<table><caption>{html}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="{f"wide {kind}".strip()}">{made}</div>'


def number(interval: Interval, *, sign: bool = False) -> str:
    """A mean with its interval below, as HTML."""
    if interval.mean is None:
        return "not measured"
    form = "+z.2f" if sign else "z.2f"  # z: no minus before what rounds to 0.
    around = "" if interval.low is None or interval.high is None else f"{interval.low:{form}} to {interval.high:{form}}"
    return f'{interval.mean:{form}} <small class="unit">{around}</small>'


def drawn(interval: Interval, bottom: float = 0.0, top: float = 1.0) -> str:
    """A mean with its interval as a small drawing; nothing where it was not measured."""
    if interval.mean is None or interval.low is None or interval.high is None:
        return ""
    return whisker(interval.mean, interval.low, interval.high, bottom=bottom, top=top)


def count(interval: Interval) -> str:
    """How many values there are, of how many."""
    return f"{interval.n} of {interval.total}"
