"""What the runs of bench/methods.py come to: means and ratios with intervals, as text, as Markdown, and in the README."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from steersman.files import read_text, write_bytes
from steersman.intervals import bootstrap

PAPER = {"caa": 0.2165, "sae": 0.1290, "sae-ts": 0.3600, "pinv": 0.1197, "rotation": 0.3115}
"""Largest product over scales, chosen in sample by an LLM judge, Gemma-2-2B (arXiv:2411.02193): another model and judge."""
REFERENCES = ("plain", "random", "prompt", "sae", "caa")
"""What the others are compared with."""
_NAMES = {
    "caa": "CAA",
    "lat": "LAT",
    "sae": "best single SAE feature",
    "sae-ts": "SAE-TS",
    "topic": "topic alignment",
    "auto": "auto-steered, at most 8 features",
    "optimised": "optimised vector (RePS)",
    "prompt": "system prompt",
    "plain": "plain",
    "random": "random vector of CAA's length",
    "wrong-sign": "minus CAA",
}
_RESAMPLES = 2000
_BEGIN, _END = "<!-- comparison: written by bench/methods.py -->", "<!-- end of comparison -->"


def mean(values: Sequence[float | None]) -> float | None:
    """Of what is there."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def cell(value: float | None) -> str:
    """A number for a table."""
    return "-" if value is None else f"{value:.3f}"


def summarise(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """By method: its mean product with an interval over tasks (seeds of a task are no independent runs), and n scored of all."""
    made: dict[str, Any] = {}
    for name in names:
        own = [row for row in rows if row["method"] == name]
        means = {measure: [mean(row.get(key, [])) for row in own] for measure, key in (
            ("product", "values"), ("behaviour", "behaviour"), ("coherence", "coherence"), ("harmonic", "harmonic")
        )}  # fmt: skip
        each = bootstrap([mean([mean(row["values"]) for row in own if row["task"] == task]) for task in _tasks(own)])
        there = sum(value is not None for value in means["product"])
        best = [row["best_product"] for row in own if row.get("best_product") is not None]
        made[name] = {
            "product": each.mean,
            "low": each.low,
            "high": each.high,
            "runs": f"{there} / {len(own)}",
            "scored": f"{sum(v is not None for row in own for v in row['values'])} / {sum(len(row['values']) for row in own)}",
            **{measure: mean(means[measure]) for measure in ("behaviour", "coherence", "harmonic")},
            "best_in_sample": fmean(best) if best else None,
            "paper_in_sample": PAPER.get(name),
        }
    return made


def ratios(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Every method's product over that of each reference: ratio of the means, and its 95 % bootstrap interval over tasks.

    Only (task, seed) that both methods were scored on count.
    """
    means = {(row["task"], row["seed"], row["method"]): mean(row["values"]) for row in rows}
    found: dict[str, dict[str, list[float]]] = {}
    for reference in REFERENCES:
        for name in names:
            both: dict[str, list[tuple[float, float]]] = {}
            for (task, seed, method), value in means.items():
                other = means.get((task, seed, reference))
                if method == name != reference and value is not None and other is not None:
                    both.setdefault(task, []).append((value, other))
            if len(both) > 1:
                found.setdefault(reference, {})[name] = _ratio(both)
    return found


def _ratio(both: dict[str, list[tuple[float, float]]]) -> list[float]:
    tasks, drawn = sorted(both), random.Random(0)

    def ratio(chosen: Sequence[str]) -> float:
        pairs = [pair for task in chosen for pair in both[task]]
        return sum(one for one, _ in pairs) / sum(other for _, other in pairs)

    made = sorted(ratio(drawn.choices(tasks, k=len(tasks))) for _ in range(_RESAMPLES))
    return [ratio(tasks), made[round(0.025 * _RESAMPLES)], made[round(0.975 * _RESAMPLES) - 1]]


def as_text(summary: dict[str, Any], tasks: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """All of it, for a terminal."""
    names = list(summary)
    measures = ("product", "low", "high", "behaviour", "coherence", "harmonic", "best_in_sample", "paper_in_sample")
    by_task = [(task, [cell(_of(rows, task, name)) for name in names]) for task in tasks]
    by_measure = [(key, [cell(summary[name][key]) for name in names]) for key in measures]
    counts = [(key, [summary[name][key] for name in names]) for key in ("runs", "scored")]
    table = [("product", names), *by_task, *by_measure, *counts]
    return "\n".join(f"{title:<22}" + "".join(f"{value:>12}" for value in values) for title, values in table)


def about(options: argparse.Namespace) -> str:
    """The settings, in a sentence."""
    seeds = ", ".join(map(str, options.seeds))
    return (
        f"tasks of `{options.tasks.name}`, seeds {seeds}, {options.prompts} prompts of at most {options.tokens} tokens a run, "
        f"judge: {options.judge}. A method's strength is chosen on one half of the prompts and reported on the other, both ways "
        "round."
    )


def as_markdown(
    summary: dict[str, Any],
    over: dict[str, dict[str, list[float]]],
    tasks: Sequence[str],
    rows: Sequence[dict[str, Any]],
    settings: str,
) -> str:
    """A page: what was measured, the summary, every task."""
    names = list(summary)
    order = sorted(names, key=lambda name: -(summary[name]["product"] or 0))
    head = [
        "# Steering methods compared",
        "",
        "Written by `bench/methods.py`; do not edit.",
        "",
        f"Bundled model and SAE, {settings}",
    ]
    head += [
        "Product: behaviour times coherence, mean over prompts, seeds and tasks; intervals are 95 % bootstraps over tasks.",
        "",
    ]
    lines = [*head, summary_table(summary, over), "", "## Every measure", ""]
    keys = ("behaviour", "coherence", "product", "harmonic", "best_in_sample", "paper_in_sample")
    titles = (
        "behaviour",
        "coherence",
        "product",
        "harmonic mean (0-2)",
        "best strength in sample",
        "in the paper, in sample",
    )
    lines += [_row(["", *titles, "runs", "answers scored"]), _row(["---"] * 9)]
    for name in order:
        own = summary[name]
        lines.append(_row([_NAMES.get(name, name), *(cell(own[key]) for key in keys), own["runs"], own["scored"]]))
    lines += ["", "## Product on every task", "", _row(["", *order]), _row(["---"] * (len(order) + 1))]
    lines += [_row([task, *(cell(_of(rows, task, name)) for name in order)]) for task in tasks]
    gaps = [f"- {row['task']}, {row['method']}, seed {row['seed']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join([*lines, *(["", "## Gaps", "", *gaps] if gaps else []), ""])


def summary_table(summary: dict[str, Any], over: dict[str, dict[str, list[float]]]) -> str:
    """Product of every method, and its ratio to CAA, to the best single feature and to the system prompt."""
    against = [name for name in ("caa", "sae", "prompt") if name in over]
    lines = [_row(["", "product", *(f"over {_NAMES[name]}" for name in against)]), _row(["---"] * (len(against) + 2))]
    for name in sorted(summary, key=lambda name: -(summary[name]["product"] or 0)):
        own = summary[name]
        product = f"{cell(own['product'])} [{cell(own['low'])}, {cell(own['high'])}]"
        shown = [over[reference].get(name) for reference in against]
        lines.append(
            _row(
                [
                    _NAMES.get(name, name),
                    product,
                    *("" if r is None else f"{r[0]:.2f} [{r[1]:.2f}, {r[2]:.2f}]" for r in shown),
                ]
            )
        )
    return "\n".join(lines)


def fill_in(page: Path, table: str) -> None:
    """Replace what stands between the page's two marks."""
    before, _, rest = read_text(page, "the page").partition(_BEGIN)
    _, mark, after = rest.partition(_END)
    if not mark:
        raise SystemExit(f"{page} has no place for the table: the lines {_BEGIN!r} and {_END!r}")
    write_bytes(page, f"{before}{_BEGIN}\n{table}\n{_END}{after}".encode())


def _tasks(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _of(rows: Sequence[dict[str, Any]], task: str, name: str) -> float | None:
    return mean([mean(row["values"]) for row in rows if (row["task"], row["method"]) == (task, name)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
