"""How features look on a terminal: contexts with what fires in them, tables, the tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steersman.cli.console import out

if TYPE_CHECKING:
    from rich.text import Text

    from steersman.sae.index.facts import FeatureIndex
    from steersman.sae.index.inspect import Inspection
    from steersman.sae.index.passages import Passage, Reader

_STRONG = 0.5
"""Tokens at this share of a context's largest activation are marked, whatever the terminal can show."""


def highlighted(passage: Passage, before: int | None = None) -> Text:
    """A context in one line: the firing tokens tinted by strength, the strong ones between guillemets too.

    At most about `before` characters are shown in front of the strongest token; None shows all.
    """
    from rich.text import Text

    first = 0
    while before is not None and passage.bounds[passage.peak] - passage.bounds[first] > before:
        first += 1
    line = Text("  …" if first else "  ")
    top = passage.height or 1.0
    for index, value in enumerate(passage.activations):
        if index < first:
            continue
        word = passage.token(index).replace("\n", "⏎")
        share = value / top
        if share >= _STRONG:
            bare = word.lstrip()
            line.append(word[: len(word) - len(bare)])
            line.append(f"«{bare}»", style="bold black on yellow" if share > 0.8 else "black on khaki1")
        else:
            line.append(word, style="black on light_goldenrod2" if share > 0.2 else "")
    return line


def print_table(
    title: str, rows: Sequence[tuple[int, str, float, str | None]], index: FeatureIndex, reader: Reader
) -> None:
    """Features with their label and strongest context."""
    screen = out()
    screen.print(title if rows else f"{title}: nothing found", style="bold", markup=False)
    for feature, score, density, label in rows:
        screen.print(f"{feature:>8} {score:>6} {100 * density:>7.3f} %  {label or '(no label)'}", markup=False)
        for passage in reader.passages(index.contexts(feature))[:1]:
            line = highlighted(passage, before=screen.width // 2)
            line.truncate(screen.width - 1, overflow="ellipsis")
            screen.print(line, no_wrap=True)


def print_inspection(found: Inspection, index: FeatureIndex) -> None:
    """The tokens with what fires on them, and the totals."""
    screen = out()
    for token in found:
        said = [
            f"{feature} ({value:.1f}) {label_of(index, feature)}"
            for feature, value in zip(token.features, token.activations, strict=True)
        ]
        screen.print(f"{token.token!r:<16} {' · '.join(said)}", markup=False, no_wrap=True, overflow="ellipsis")
    screen.print("\nover the whole text (sum of activations)", style="bold", markup=False)
    for total in found.totals[:10]:
        line = f"{total.feature:>8} {total.sum:>9.1f} on {total.tokens} tokens  {label_of(index, total.feature)}"
        screen.print(line, markup=False)


def label_of(index: FeatureIndex, feature: int) -> str:
    """A feature's label, or that it has none."""
    label = index.labels[feature]
    return label.text if label else "(never fires)"
