"""What an auto-steering run leaves behind: recipe.json, log.jsonl, and report.html for people.

The page stands on its own: no script, nothing fetched, light or dark as the reader's system is. Labels, prompts and answers come
from models and files: every text is escaped. Knows nothing of how a recipe is found.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from steersman.auto.charts import bar, line_chart, whisker
from steersman.auto.facts import AutoResult, Evidence, Scores
from steersman.files import write_bytes
from steersman.intervals import Interval
from steersman.steering.recipe_file import save_recipe
from steersman.version import __version__

RECIPE, REPORT, LOG = "recipe.json", "report.html", "log.jsonl"

VERDICTS = {
    "proven": ("✓", "Proven: on prompts used nowhere before, the recipe does what it says."),
    "not proven": ("✗", "Not proven: the evidence does not support this behaviour."),
    "no effect": ("✗", "No effect: no strength that was tried improved on plain answers."),
}
"""A sign and words for each verdict."""

_MEASURES = ("behaviour", "coherence", "product")
_WAYS = {
    "plain": "the model as it is",
    "steered": "with this recipe",
    "prompted": "asked for the behaviour in a system prompt",
    "random": "a random vector of the same length",
}
_PACKAGES = ("torch", "transformers", "numpy")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(result: AutoResult, folder: Path) -> Path:
    """Write the recipe, the log and the report; each file whole or not at all.

    Args:
        result: of a run.
        folder: made where it is not there; files of these names in it are replaced.

    Returns:
        Where the recipe is.

    Raises:
        StorageError: the disk refused.
    """
    recipe = folder / RECIPE
    save_recipe(result.recipe, recipe)
    write_bytes(folder / LOG, "".join(_line(entry) for entry in result.log).encode("utf-8", "replace"))
    write_bytes(folder / REPORT, html(result, recipe).encode("utf-8", "replace"))
    return recipe


def result_json(result: AutoResult, recipe: Path | None = None) -> dict[str, Any]:
    """The result as plain JSON values; a number that could not be had is None.

    Args:
        result: of a run.
        recipe: where it was written.
    """
    accuracy = result.evidence.choice_accuracy
    made = {
        "behaviour": result.behaviour.description,
        "features": [{"id": each.id, "label": each.label, "weight": each.weight} for each in result.features],
        "strength": result.strength,
        "scores": {way: _score_facts(scores) for way, scores in result.evidence.scores.items()},
        "choice_accuracy": {"plain": accuracy.plain, "steered": accuracy.steered} if accuracy else None,
        "examples": [asdict(example) for example in result.evidence.examples],
        "seconds": round(result.seconds, 2),
        "verdict": result.evidence.verdict,
        "recipe": str(recipe) if recipe else None,
    }
    return dict(_finite(made))


def html(result: AutoResult, recipe: Path) -> str:
    """The report as one page; `recipe` is where the recipe will be, for the lines that use it."""
    title = escape(result.behaviour.description)
    style = (resources.files("steersman") / "data" / "report.css").read_text(encoding="utf-8")
    about = (_facts, _examples, _proof, _features, _curves, _candidates)
    body = "".join((_verdict(result.evidence), *(part(result) for part in about), _usage(recipe), _origin(result)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>'
        f'<style>{style}</style></head><body><main><p class="over">steersman autosteer</p>'
        f'<h1 dir="auto">{title}</h1>{body}</main></body></html>\n'
    )


def _verdict(evidence: Evidence) -> str:
    sign, words = VERDICTS[evidence.verdict]
    kind = "verdict proven" if evidence.verdict == "proven" else "verdict"
    return f'<div class="{kind}"><p><strong>{sign} {words}</strong></p><p>{escape(evidence.why)}</p></div>'


def _facts(result: AutoResult) -> str:
    recipe, evidence = result.recipe, result.evidence
    asked = max((scores.product.total for scores in evidence.scores.values()), default=0)
    said = {
        "opposite": result.behaviour.opposite or "none given",
        "model": recipe.model.id if recipe.model else "any",
        "sparse autoencoder": recipe.sae.id if recipe.sae else "not named",
        "layer": ", ".join(map(str, sorted({edit.layer for edit in recipe.edits}))),
        "features": str(len(result.features)),
        "strength": f"{result.strength:.3g} mean residual norms",
        "method": recipe.method,
        "proof": f"{asked} unseen prompts; judges: {', '.join(evidence.judges) or 'none'}",
        "time": f"{result.seconds:.0f} s",
    }
    return f"<dl>{''.join(f'<div><dt>{key}</dt><dd>{escape(value)}</dd></div>' for key, value in said.items())}</dl>"


def _examples(result: AutoResult) -> str:
    rows = "".join(
        f'<tr><th colspan="3" scope="rowgroup" dir="auto">{escape(each.prompt)}</th></tr><tr>'
        f'<td dir="auto">{escape(each.plain)}</td><td class="steered" dir="auto">{escape(each.steered)}</td>'
        f'<td dir="auto">{escape(each.prompted)}</td></tr>'
        for each in result.evidence.examples
    )
    head = "".join(f'<th scope="col">{way}</th>' for way in ("plain", "steered", "prompted"))
    caption = f"Answers to prompts that nothing was tuned on. Prompted: {_WAYS['prompted']}."
    table = f'<table class="examples"><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return _section("Before and after", f'<div class="wide">{table}</div>')


def _proof(result: AutoResult) -> str:
    evidence = result.evidence
    rows = [
        (f"{escape(way)} <small class='note'>{_WAYS.get(way, '')}</small>", *_score_cells(scores))
        for way, scores in evidence.scores.items()
    ]
    told = _table(
        "Mean scores from 0 to 1 with 95 % bootstrap intervals, and how many answers could be scored.",
        ("way of answering", *_MEASURES, "product, 0 to 1", "scored"),
        rows,
    )
    differences = {
        "plain": evidence.against_plain,
        "random": evidence.against_random,
        "prompted": evidence.against_prompted,
    }
    gaps = _table(
        "Product of behaviour and coherence, steered minus each other way, prompt by prompt.",
        ("steered minus", "difference", "pairs"),
        [(way, _number(gap, sign=True), _count(gap)) for way, gap in differences.items()],
    )
    accuracy = evidence.choice_accuracy
    cost = (
        f"Multiple-choice questions answered rightly: plain {accuracy.plain:.1%}, steered {accuracy.steered:.1%} "
        f"(of {accuracy.n})."
        if accuracy
        else "What steering costs on multiple-choice questions was not measured."
    )
    return _section("Evidence", f"{told}{gaps}<p>{cost}</p>")


def _features(result: AutoResult) -> str:
    largest = max((abs(each.weight) for each in result.features), default=0.0)
    order = sorted(result.features, key=lambda each: -abs(each.weight))
    rows = [(str(f.id), escape(f.label or "(no label)"), bar(f.weight, largest), f"{f.weight:+.3f}") for f in order]
    caption = "Their decoder rows, weighted and summed, are the direction that is added; below 0: pushed away from."
    return _section("Features", _table(caption, ("id", "label", "", "weight"), rows))


def _curves(result: AutoResult) -> str:
    history = [(each.step, each.score) for each in result.history]
    steps = line_chart(history, title="Score over steps", x_label="step", y_label="validation score")
    mark = min(result.strengths, key=lambda length: abs(length - result.strength), default=None)
    strengths = line_chart(
        list(result.strengths.items()),
        title="Score by strength, the chosen one ringed",
        x_label="strength (mean residual norms)",
        y_label="behaviour × coherence",
        mark=mark,
    )
    return _section("How it was tuned", f'<div class="charts">{steps}{strengths}</div>')


def _candidates(result: AutoResult) -> str:
    rows = [
        (
            str(c.id),
            escape(c.label or "(no label)"),
            ", ".join(c.sources),
            f"{c.score:+.3f}",
            escape(", ".join(c.marks)),
        )
        for c in result.candidates
    ]
    table = _table(
        "Marked features are doubtful: they fire everywhere, only on formatting, or never.",
        ("id", "label", "found by", "score", "marks"),
        rows,
    )
    return _section("Candidates", f"<details><summary>{len(rows)} features were considered</summary>{table}</details>")


def _usage(recipe: Path) -> str:
    shell = f'steersman generate --recipe {shlex.quote(str(recipe))} --compare --prompt "What is money?"'
    python = (
        "import steersman as st\n\nengine = st.Engine(st.load_model())\n"
        f"recipe = st.load_recipe({str(recipe)!r})\n"
        '[answer] = engine.generate([st.Request(prompt=st.chat("What is money?"), recipe=recipe)])\nprint(answer.text)'
    )
    blocks = "".join(f"<pre><code>{escape(text)}</code></pre>" for text in (shell, python))
    note = (
        "--strength 0.5 or 0.5 * recipe: half as strong. A model other than the bundled one: --model, load_model(...)."
    )
    return _section("Use it", f'{blocks}<p class="note">{note}</p>')


def _origin(result: AutoResult) -> str:
    versions = {"steersman": __version__, "python": platform.python_version()} | _versions()
    said = "; ".join(f"{name} {number}" for name, number in versions.items())
    model = result.recipe.model
    facts = json.dumps(_finite({"data": result.recipe.data, "model": asdict(model) if model else None}), indent=2)
    return _section(
        "Origin",
        f'<p class="note">{escape(said)}</p><details><summary>Examples, settings and model</summary><pre><code>'
        f"{escape(facts)}</code></pre></details>",
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first of each row is its heading."""
    head = "".join(f'<th scope="col">{text}</th>' if text else "<td></td>" for text in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    table = f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _score_cells(scores: Scores) -> tuple[str, ...]:
    product = scores.product
    missing = product.mean is None or product.low is None or product.high is None
    drawn = "" if missing else whisker(product.mean or 0.0, product.low or 0.0, product.high or 0.0)
    return (*(_number(getattr(scores, name)) for name in _MEASURES), drawn, _count(product))


def _number(interval: Interval, *, sign: bool = False) -> str:
    if interval.mean is None:
        return "not measured"
    form = "+.2f" if sign else ".2f"
    around = "" if interval.low is None or interval.high is None else f"{interval.low:{form}} to {interval.high:{form}}"
    return f'{interval.mean:{form}} <small class="unit">{around}</small>'


def _count(interval: Interval) -> str:
    return f"{interval.n} of {interval.total}"


def _score_facts(scores: Scores) -> dict[str, Any]:
    measured: dict[str, Interval] = {name: getattr(scores, name) for name in _MEASURES}
    intervals = {
        name: {"low": each.low, "high": each.high, "n": each.n, "total": each.total} for name, each in measured.items()
    }
    return {**{name: each.mean for name, each in measured.items()}, "intervals": intervals}


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(_finite(entry), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """The same with None in place of infinity and NaN, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found
