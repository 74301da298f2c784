"""What an auto-steering run leaves behind: recipe.json, log.jsonl, and report.html for people.

The page stands on its own: no script, nothing fetched, light or dark as the reader's system is. Labels, prompts and answers come
from models and files: every text is escaped. Knows nothing of how a recipe is found.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from steersman.auto.facts import AutoResult, Scores
from steersman.auto.page import facts, note, page, section
from steersman.auto.sections import answers, candidates, examples, features, proof, reading, tuning
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
_INTRODUCTION = note(
    "Asked for: a model that behaves as the heading says, without being told to. What was found is a recipe: features of a "
    "sparse autoencoder, summed to one direction, which is added to the model's activations while it writes. Its weights and the "
    "prompt stay as they are."
)
_PACKAGES = ("torch", "transformers", "numpy")


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
    about = (_verdict, _facts, answers, proof, features, tuning, examples, candidates)
    body = "".join((_INTRODUCTION, *(part(result) for part in about), _usage(recipe), _origin(result)))
    return page("steersman autosteer", result.behaviour.description, body, ("report.css",))


def _verdict(result: AutoResult) -> str:
    evidence = result.evidence
    sign, words = VERDICTS[evidence.verdict]
    kind = "verdict proven" if evidence.verdict == "proven" else "verdict"
    prompting = f"Against asking for it in a system prompt: {reading(evidence.against_prompted)}."
    return (
        f'<div class="{kind}"><p><strong>{sign} {words}</strong></p><p>{escape(_sentence(evidence.why))}</p>'
        f"<p>{prompting}</p></div>"
    )


def _facts(result: AutoResult) -> str:
    recipe, evidence = result.recipe, result.evidence
    asked = max((scores.product.total for scores in evidence.scores.values()), default=0)
    return facts(
        {
            "opposite": result.behaviour.opposite or "none given",
            "model": recipe.model.id if recipe.model else "any",
            "sparse autoencoder": recipe.sae.id if recipe.sae else "not named",
            "layer, from 0": ", ".join(map(str, sorted({edit.layer for edit in recipe.edits}))),
            "features": str(len(result.features)),
            "strength": f"{result.strength:.3g} mean residual norms",
            "method": recipe.method,
            "proof": f"{asked} unseen prompts; judges: {', '.join(evidence.judges) or 'none'}",
            "time": f"{result.seconds:.0f} s",
        }
    )


def _usage(recipe: Path) -> str:
    shell = f'steersman generate --recipe {shlex.quote(str(recipe))} --compare --prompt "What is money?"'
    python = (
        "import steersman as st\n\nengine = st.Engine(st.load_model())\n"
        f"recipe = st.load_recipe({str(recipe)!r})\n"
        '[answer] = engine.generate([st.Request(prompt=st.chat("What is money?"), recipe=recipe)])\nprint(answer.text)'
    )
    blocks = "".join(f"<pre><code>{escape(text)}</code></pre>" for text in (shell, python))
    said = (
        "--strength 0.5 or 0.5 * recipe: half as strong. A model other than the bundled one: --model, load_model(...)."
    )
    return section("Use it", f"{blocks}{note(said)}")


def _origin(result: AutoResult) -> str:
    versions = {"steersman": __version__, "python": platform.python_version()} | _versions()
    said = "; ".join(f"{name} {number}" for name, number in versions.items())
    model = result.recipe.model
    settings = json.dumps(_finite({"data": result.recipe.data, "model": asdict(model) if model else None}), indent=2)
    return section(
        "Origin",
        f"{note(said)}<details><summary>Settings and model</summary><pre><code>{escape(settings)}</code></pre></details>",
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


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
