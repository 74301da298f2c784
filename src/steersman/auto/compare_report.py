"""What the runs of an experiment came to: a table, and a plot of score against epoch. Knows nothing of how they were run."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import JsonValue

from steersman.auto.experiment import Run
from steersman.auto.facts import Tuned
from steersman.errors import DataError
from steersman.facts import fact
from steersman.intervals import Interval, bootstrap

ALL = "(all)"
"""In place of a behaviour: the mean over all of them."""


@fact
class Outcome:
    """What one run came to."""

    score: float | None
    """What is compared, in [0, 1]; None with a reason."""
    history: tuple[tuple[int, float], ...] = ()
    """Epoch and score of each, in [0, 1]."""
    seconds: float = 0.0
    missing: str | None = None
    """Why there is no score."""
    facts: dict[str, JsonValue] = field(default_factory=dict)
    """Anything else worth keeping."""

    def __post_init__(self) -> None:
        for score in (self.score, *(score for _, score in self.history)):
            if score is not None and not 0 <= score <= 1:
                raise DataError(f"a score lies between 0 and 1, not {score}")
        if (self.score is None) != (self.missing is not None):
            raise DataError("an outcome lacks its score exactly where it gives a reason")

    @classmethod
    def of(cls, tuned: Tuned, score: float | None, seconds: float, missing: str | None = None) -> Outcome:
        """The outcome of a tuning. Epochs that were scored by something else than a judge (a likelihood) are left out."""
        history = tuple((epoch.step, epoch.score) for epoch in tuned.history if 0 <= epoch.score <= 1)
        facts: dict[str, JsonValue] = {
            "method": tuned.method,
            "strength": tuned.strength,
            "weights": {str(feature): weight for feature, weight in tuned.weights.items()},
        }
        return cls(score=score, history=history, seconds=seconds, missing=missing, facts=facts)


@fact
class Ended:
    """A run and its outcome, or why there is none."""

    run: Run
    outcome: Outcome | None
    error: str | None = None


@fact
class Row:
    """One combination, over its seeds."""

    name: str
    behaviour: str
    scorer: str | None
    judge_prompt: str | None
    features: int | None
    epochs: int | None
    score: Interval
    """Over the runs; failed ones count in its total."""
    steps: float | None
    """Mean number of epochs until the best one."""
    seconds: float | None
    """Mean of a run."""
    plain: float | None = None
    """Mean score of plain answers, from the runs that say it."""
    proven: int | None = None
    """In how many runs the evidence supports the behaviour; None where no run says."""
    error: str | None = None
    """Of the first run that failed."""


def rows_of(ended: Sequence[Ended]) -> tuple[Row, ...]:
    """One row a combination, seeds together; with several behaviours, one over all of them too. Best first within each."""
    groups: dict[tuple[Any, ...], list[Ended]] = defaultdict(list)
    behaviours = list(dict.fromkeys(each.run.behaviour for each in ended))
    for each in ended:
        for behaviour in (each.run.behaviour, ALL) if len(behaviours) > 1 else (each.run.behaviour,):
            groups[(behaviour, *_variant(each.run))].append(each)
    order = [ALL, *behaviours]
    rows = [_row(behaviour, group) for (behaviour, *_), group in groups.items()]
    return tuple(sorted(rows, key=lambda row: (order.index(row.behaviour), -_or(row.score.mean, -1.0))))


def table_of(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    heads = ("behaviour", "optimiser", "scorer", "judge prompt", "features", "epochs")
    lines = [
        f"| {' | '.join(heads)} | score | 95 % interval | plain | proven | runs | best after | seconds | failed with |",
        "|" + "---|" * (len(heads) + 8),
    ]
    for row in rows:
        what = (row.behaviour, row.name, row.scorer, row.judge_prompt, row.features, row.epochs)
        score = row.score
        spread = "" if score.low is None or score.high is None else f"{score.low:.3f} to {score.high:.3f}"
        cells = [*("" if cell is None else str(cell) for cell in what), _number(score.mean, 3), spread]
        cells += [_number(row.plain, 3), "" if row.proven is None else str(row.proven)]
        cells += [f"{score.n} / {score.total}", _number(row.steps, 1), _number(row.seconds, 1), row.error or ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def drawn(ended: Sequence[Ended], path: Path, kind: str) -> None:
    """Draw score against epoch: a panel a behaviour, a colour a combination.

    Thin lines are seeds, the thick one is the mean of the best so far.

    Args:
        ended: the runs.
        path: where to.
        kind: `svg` or `png`.

    Raises:
        StorageError: from the caller's `replacing`, where the disk refuses.
    """
    from matplotlib import colormaps
    from matplotlib.figure import (
        Figure,
    )  # Not pyplot: that keeps figures, and a choice of screen, for the whole program.

    behaviours = list(dict.fromkeys(each.run.behaviour for each in ended))
    variants = list(dict.fromkeys(_variant(each.run) for each in ended))
    scored = [v for v in variants if any(_variant(e.run) == v and e.outcome and e.outcome.history for e in ended)]
    palette, dashes = colormaps["tab10"].colors, ("-", "--", ":", "-.")  # type: ignore[attr-defined]
    looks = {variant: {"color": palette[i % 10], "linestyle": dashes[i // 10 % 4]} for i, variant in enumerate(scored)}
    figure = Figure(figsize=(7.5, 3.2 * len(behaviours) + 0.8 + 0.22 * len(scored)), layout="constrained")
    panels = figure.subplots(len(behaviours), 1, squeeze=False)[:, 0]
    for panel, behaviour in zip(panels, behaviours, strict=True):
        for variant, look in looks.items():
            here = [each for each in ended if (each.run.behaviour, _variant(each.run)) == (behaviour, variant)]
            histories = [each.outcome.history for each in here if each.outcome is not None and each.outcome.history]
            for history in histories:
                panel.plot(*zip(*history, strict=True), **look, linewidth=0.7, alpha=0.4)
            if histories:
                steps, means = _best_so_far(histories)
                panel.plot(steps, means, **look, linewidth=2, marker=".", label=_words(variant))
        _dress(panel, behaviour)
    _explain(figure, panels, [variant for variant in variants if variant not in scored])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # A script that the font lacks is drawn as boxes.
        figure.savefig(path, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)


def _dress(panel: Any, behaviour: str) -> None:
    """A panel's axes, and its behaviour as a title that is no formula."""
    panel.set_title(_cut(behaviour), loc="left", fontsize="medium", parse_math=False)
    panel.set(xlabel="epoch", ylabel="score, 0 to 1", ylim=(-0.02, 1.02))
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(axis="y", color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    if not panel.get_lines():
        panel.set_xticks([])
        panel.text(0.5, 0.5, "no epoch was scored by a judge", ha="center", color="0.4", transform=panel.transAxes)


def _explain(figure: Any, panels: Any, unscored: Sequence[tuple[Any, ...]]) -> None:
    """The key: what is thick and what thin, who has which colour, and who is not drawn."""
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines() if line.get_label()[0] != "_"}
    said = ["thick: mean over the seeds of the best so far; thin: each seed's own scores"] if lines else []
    if lines and unscored:
        said.append(_cut(f"not drawn, no epoch scored by a judge: {'; '.join(map(_words, unscored))}"))
    if lines:
        legend = figure.legend(
            lines.values(), lines.keys(), loc="outside lower center", frameon=False, title="\n".join(said)
        )
        for text in (*legend.get_texts(), legend.get_title()):
            text.set_parse_math(False)


def _best_so_far(histories: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """Mean over runs of the best score so far; a run that stopped early keeps its best."""
    steps = sorted({step for history in histories for step, _ in history})
    first = max(min(step for step, _ in history) for history in histories)
    steps = [step for step in steps if step >= first]
    return steps, [fmean(max(score for at, score in history if at <= step) for history in histories) for step in steps]


def _row(behaviour: str, group: Sequence[Ended]) -> Row:
    run, outcomes = group[0].run, [each.outcome for each in group if each.outcome is not None]
    best = [
        next(step for step, score in each.history if score == max(score for _, score in each.history))
        for each in outcomes
        if each.history
    ]
    plain = [float(each) for fact in outcomes if isinstance(each := fact.facts.get("plain"), int | float)]
    verdicts = [each.facts["verdict"] for each in outcomes if "verdict" in each.facts]
    errors = [each.error or (each.outcome.missing if each.outcome else None) for each in group]
    return Row(
        name=run.name,
        behaviour=behaviour,
        scorer=run.scorer,
        judge_prompt=run.judge_prompt,
        features=run.features,
        epochs=run.epochs,
        score=bootstrap([None if each.outcome is None else each.outcome.score for each in group]),
        steps=fmean(best) if best else None,
        seconds=fmean(each.seconds for each in outcomes) if outcomes else None,
        plain=fmean(plain) if plain else None,
        proven=verdicts.count("proven") if verdicts else None,
        error=next((error for error in errors if error), None),
    )


def _variant(run: Run) -> tuple[Any, ...]:
    """What tells runs apart, behaviour and seed aside. Names are unique in an experiment, so they stand for the settings."""
    return (run.name, run.scorer, run.judge_prompt, run.features, run.epochs)


def _words(variant: tuple[Any, ...]) -> str:
    name, scorer, judge_prompt, features, epochs = variant
    parts = [name, scorer, judge_prompt and f"judge: {judge_prompt}", features and f"{features} features"]
    return _cut(", ".join(part for part in [*parts, epochs and f"{epochs} epochs"] if part))


def _cut(text: str, length: int = 90) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
