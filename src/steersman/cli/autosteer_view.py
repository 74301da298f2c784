"""An auto-steering run as it happens: a live picture on a terminal, plain lines anywhere else; both on standard error.

Events come as a name with plain facts. Labels come from files: what could steer a terminal is taken out. Knows no models.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Report = Callable[[str, dict[str, Any]], None]
"""Called with the name of an event and its facts."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_SHOWN = 8
_BAR = 12


@dataclass(frozen=True, slots=True)
class Best:
    """The best weights so far."""

    weights: dict[int, float]
    score: float | None
    """None where it was not said."""
    strength: float | None
    """In mean residual norms, from optimisers that choose it too."""


class Watch:
    """What is known of a run so far, told event by event; unknown events are passed over."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour, self.began = clean(behaviour), time.monotonic()
        # Replaced, never changed in place: the picture is drawn by another thread.
        self.stages: tuple[tuple[str, float], ...] = ()
        self.labels: Mapping[int, str] = {}
        self.notes: Mapping[str, str] = {}
        self.method: object = None
        self.scores: tuple[float, ...] = ()
        """Of the present method: those of another one may mean something else."""
        self.weights: Mapping[int, float] = {}
        self.best: Best | None = None
        self.strengths: Mapping[float, float] = {}

    def __call__(self, name: str, facts: Mapping[str, Any]) -> None:
        """Take in one event."""
        if name == "stage":
            self.stages = (*self.stages, (clean(facts["name"]), float(facts["seconds"])))
        elif name == "contrast":
            dropped = ", ".join(f"{count} {clean(why)}" for why, count in facts["dropped"].items())
            self._note("examples", f"{facts['kept']} kept" + (f", dropped: {dropped}" if dropped else ""))
        elif name == "candidates":
            self.labels = {int(each["id"]): clean(each["label"] or "(no label)") for each in facts["features"]}
            self._note("candidates", f"{len(self.labels)} features")
        elif name == "step":
            self._step(facts)
        elif name == "best":
            self.best = _best(facts)
        elif name == "strength":
            self.strengths = {**self.strengths, float(facts["strength"]): float(facts["score"])}
        elif name == "proof":
            self._note("proof", f"{clean(facts['way'])}: {facts['n']} answers")

    @property
    def strength(self) -> float | None:
        """The best strength so far; None before any was better than none at all."""
        best = max(self.strengths, key=lambda length: (self.strengths[length], -length), default=0.0)
        return best or None

    def label(self, feature: int) -> str:
        """What is known of a feature."""
        return self.labels.get(feature, "(no label)")

    def _step(self, facts: Mapping[str, Any]) -> None:
        found = _best(facts)
        if facts.get("method") != self.method:
            self.method, self.scores = facts.get("method"), ()
        self.weights = found.weights
        if found.score is not None:
            so_far = max(self.scores, default=-math.inf)
            self.scores = (*self.scores, found.score)
            if found.weights and found.score > so_far:
                self.best = found

    def _note(self, name: str, text: str) -> None:
        self.notes = {**self.notes, name: text}


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[Report]:
    """Show what is reported as it happens; on a terminal the picture goes away at the end."""
    if not sys.stderr.isatty():
        yield _lines(watch)
        return
    from rich.console import Console
    from rich.live import Live

    screen = Console(stderr=True, highlight=False)
    # Redrawn a few times a second, so that the clock goes on while nothing is reported.
    with Live(get_renderable=lambda: picture(watch), console=screen, refresh_per_second=4, transient=True):
        yield watch


def picture(watch: Watch) -> RenderableType:
    """The run on one screen: where it stands, the strongest features, the curves."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts: list[RenderableType] = [Text(_progress(watch), style="dim", overflow="ellipsis", no_wrap=True)]
    parts += [Text(f"{name}: {text}", overflow="ellipsis", no_wrap=True) for name, text in watch.notes.items()]
    if watch.weights:
        parts += [Text(""), _features(watch)]
    if watch.scores:
        parts.append(
            Text(f"\nscore     {sparkline(watch.scores)}  {watch.scores[-1]:.3f}, best {max(watch.scores):.3f}")
        )
    if watch.strengths:
        tried = [watch.strengths[length] for length in sorted(watch.strengths)]
        best = f"best at {watch.strength:.3g}" if watch.strength else "none better than plain"
        parts.append(Text(f"strength  {sparkline(tried)}  {best}"))
    return Panel(Group(*parts), title=Text(watch.behaviour, style="bold"), title_align="left", padding=(0, 1))


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """The last values as blocks, the lowest of them lowest; values that are no numbers are left out."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / span * top)] if span else _BLOCKS[top // 2] for value in shown)


def clean(text: object) -> str:
    """A text on one line that cannot steer a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())


def strongest(weights: Mapping[int, float], n: int) -> dict[int, float]:
    """The features that weigh most, most first."""
    order = sorted(weights, key=lambda feature: -abs(weights[feature]))
    return {feature: weights[feature] for feature in order[:n]}


def line(name: str, facts: Mapping[str, Any], watch: Watch) -> str | None:
    """One event as a line for a log; None for what needs none."""
    if name == "stage":
        return f"[{float(facts['seconds']):6.1f} s] {clean(facts['name'])}"
    if name == "contrast":
        return f"examples: {watch.notes['examples']}"
    if name == "candidates":
        first = "; ".join(f"{feature} {label}" for feature, label in list(watch.labels.items())[:_SHOWN])
        return f"candidates: {len(watch.labels)} ({first})"
    if name == "step":
        few = ", ".join(f"{feature}: {weight:+.3f}" for feature, weight in strongest(watch.weights, _SHOWN).items())
        return f"step {facts['step']}: score {float(facts['score']):.4f}  {few}".rstrip()
    if name == "strength":
        return f"strength {float(facts['strength']):.3g}: score {float(facts['score']):.4f}"
    return f"proof: {watch.notes['proof']}" if name == "proof" else None


def _best(facts: Mapping[str, Any]) -> Best:
    """The weights of an event, with what is said of them."""
    weights = {int(feature): float(weight) for feature, weight in facts["weights"].items()}
    score = facts.get("score")
    score = float(score) if score is not None and math.isfinite(score) else None
    return Best(weights, score, facts.get("strength") or None)


def _lines(watch: Watch) -> Report:
    def report(name: str, facts: dict[str, Any]) -> None:
        watch(name, facts)
        text = line(name, facts, watch)
        if text is not None:
            print(text, file=sys.stderr, flush=True)

    return report


def _progress(watch: Watch) -> str:
    """The stages so far with the time each took, the present one last, and the clock."""
    ends = [began for _, began in watch.stages[1:]]
    done = [f"✓ {name} {end - began:.0f} s" for (name, began), end in zip(watch.stages, ends, strict=False)]
    now = [f"… {watch.stages[-1][0]}"] if watch.stages else ["…"]
    return f"{time.monotonic() - watch.began:4.0f} s  " + "  ".join(done + now)


def _features(watch: Watch) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), expand=True)
    table.add_column("feature", justify="right", no_wrap=True)
    table.add_column("label", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column("", width=_BAR + 2)
    few = strongest(watch.weights, _SHOWN)
    largest = max(map(abs, few.values()))
    for feature, weight in few.items():
        length = max(1, round(_BAR * abs(weight) / largest)) if weight else 0
        drawn = Text("█" * length, style="red" if weight < 0 else "green")
        table.add_row(str(feature), Text(watch.label(feature)), f"{weight:+.3f}", drawn)
    return table
