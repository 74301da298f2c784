"""Steering methods on a folder of tasks, as in the SAE-TS paper's table: product per method, strength chosen on held-out halves.

Every (task, method, seed) is kept as it ends, answers and grades too: stopped at any moment, it goes on there. The last line is
one JSON object.

    python bench/methods.py [TASKS] [--methods caa,sae,sae-ts,...] [--seeds 0,1,2] [--prompts 16] [--tokens 40] [--out FOLDER]

TASKS: folder of JSON files with `name`, `positive`, `negative` and `score_criterion`; by default
`behaviours/sae_ts_tasks` in $STEERSMAN_TEST_DATA. Another model or SAE wants another --out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from steersman.engine.engine import Engine, EngineLimits
from steersman.errors import SteersmanError
from steersman.evals.behaviours import EvalBehaviour, load_behaviour
from steersman.evals.evaluate import Tools, evaluate
from steersman.evals.facts import EvalSettings
from steersman.evals.store import Ledger, content_hash
from steersman.evals.tables import facts_of
from steersman.files import sha256_file
from steersman.intervals import bootstrap
from steersman.models.load import load_model
from steersman.models.sentence_encoder import load_encoder
from steersman.sae.library import find_sae
from steersman.steering.methods.effect_map_file import MAP_FILE

# Tasks of the paper as one would ask for them: small models and the likelihood judge follow an order better than a criterion.
DESCRIPTIONS = {
    "anger": "Sound very angry.",
    "christian_evangelist": "Talk about Christianity and how good it is, like an evangelist.",
    "conspiracy": "Suspect a secret conspiracy behind everything.",
    "french": "Answer in French.",
    "london": "Mention London in everything you say.",
    "love": "Speak of love, with loving words.",
    "praise": "Praise the user warmly.",
    "want_to_die": "Sound like a person who wants to die.",
    "wedding": "Talk about weddings.",
}
PAPER = {"caa": 0.2165, "sae": 0.1290, "sae-ts": 0.3600, "pinv": 0.1197, "rotation": 0.3115}
"""Largest product over scales, chosen in sample by an LLM judge, Gemma-2-2B (arXiv:2411.02193): another model and judge."""
METHODS = "caa,lat,sae,sae-ts,topic,auto,optimised,prompt,plain,random,wrong-sign"
_CONTROLS = {"prompt", "plain", "random", "wrong-sign"}


def main() -> None:
    """Run what is not done yet, and print the table."""
    options = _options()
    names = [name for name in options.methods.split(",") if name]
    tasks = [load_behaviour(path, DESCRIPTIONS.get(path.stem)) for path in sorted(options.tasks.glob("*.json"))]
    if not tasks:
        sys.exit(f"there are no tasks in {options.tasks}; name the folder of the task files")
    done = Ledger(options.out / "done.jsonl")
    began = time.perf_counter()
    bench = _Bench(options)
    rows = [bench.row(task, name, seed, done) for seed in options.seeds for task in tasks for name in names]
    summary = summarise(rows, names)
    _print(summary, tasks, rows)
    gaps = [{key: row[key] for key in ("task", "method", "seed", "error")} for row in rows if row["error"]]
    print(
        json.dumps(
            {
                "bench": "methods",
                "tasks": len(tasks),
                "seeds": options.seeds,
                "prompts": options.prompts,
                "tokens": options.tokens,
                "judge": options.judge,
                "methods": summary,
                "gaps": gaps,
                "seconds": round(time.perf_counter() - began, 1),
                "threads": torch.get_num_threads(),
            }
        )
    )


class _Bench:
    """The model and its tools, loaded when the first run is not done yet."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.engine: Engine | None = None
        self.tools: Tools | None = None

    def row(self, task: EvalBehaviour, name: str, seed: int, done: Ledger) -> dict[str, Any]:
        """What one method came to on one task with one seed; from before where it was done."""
        o = self.options
        key = content_hash(
            [task.sha256, name, seed, o.prompts, o.tokens, o.judge, _map_hash() if name == "sae-ts" else ""]
        )
        before = done.get(key)
        if isinstance(before, dict):
            return before
        row: dict[str, Any] = {
            "task": task.name,
            "method": name,
            "seed": seed,
            "error": None,
            "values": [],
            "strengths": [],
        }
        try:
            row |= self._run(task, name, seed)
        except SteersmanError as error:
            row["error"] = str(error)
        if row["error"] is None:  # What failed is tried again the next time.
            done.put({key: row})
        print(f"{task.name:<22}{name:<12}seed {seed}  {_shown(row)}", file=sys.stderr, flush=True)
        return row

    def _run(self, task: EvalBehaviour, name: str, seed: int) -> dict[str, Any]:
        o = self.options
        if self.engine is None or self.tools is None:
            self.engine = Engine(load_model(), EngineLimits(slots=32))
            self.tools = Tools(load_encoder(), o.judge)
        # A control of another method needs that method: CAA, whose answers are on disk by then.
        methods = [name] if name not in _CONTROLS else ["caa", name]
        settings = EvalSettings(prompts=o.prompts, tokens=o.tokens, seed=seed)
        found = evaluate(self.engine, task, o.out / task.name, tools=self.tools, methods=methods, settings=settings)
        facts = facts_of(found, samples=True)
        [result] = [each for each in facts["methods"] if each["name"] == name]
        chosen = {s["prompt"]: s for s in facts["samples"] if s["method"] == name and s["chosen"]}
        picked = [chosen.get(prompt, {}) for prompt in found.prompts]
        return {
            "error": result["error"],
            "values": [each.get("product") for each in picked],
            "behaviour": [each.get("behaviour") for each in picked],
            "coherence": [each.get("coherence") for each in picked],
            "harmonic": [each.get("harmonic") for each in picked],
            "strengths": result["strengths"],
            "best_product": result["best_product"],
            "note": result["note"],
        }


def _map_hash() -> str:
    """Of the shipped SAE's effect map: a new map makes new vectors."""
    path = find_sae().folder / MAP_FILE
    return sha256_file(path) if path.is_file() else ""


def summarise(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """By method: the mean over (task, seed) of its product, with an interval over these, and n scored of all answers."""
    made: dict[str, Any] = {}
    for name in names:
        own = [row for row in rows if row["method"] == name]
        means = {measure: [_mean(row.get(key, [])) for row in own] for measure, key in (
            ("product", "values"), ("behaviour", "behaviour"), ("coherence", "coherence"), ("harmonic", "harmonic")
        )}  # fmt: skip
        each = bootstrap(means["product"])
        best = [row["best_product"] for row in own if row.get("best_product") is not None]
        made[name] = {
            "product": each.mean,
            "low": each.low,
            "high": each.high,
            "runs": f"{each.n} / {each.total}",
            "scored": f"{sum(v is not None for row in own for v in row['values'])} / {sum(len(row['values']) for row in own)}",
            **{measure: bootstrap(means[measure]).mean for measure in ("behaviour", "coherence", "harmonic")},
            "best_in_sample": fmean(best) if best else None,
            "paper_in_sample": PAPER.get(name),
        }
    return made


def _print(summary: dict[str, Any], tasks: Sequence[EvalBehaviour], rows: Sequence[dict[str, Any]]) -> None:
    names = list(summary)
    print(f"{'product':<22}" + "".join(f"{name:>12}" for name in names))
    for task in tasks:
        cells = []
        for name in names:
            own = [_mean(row["values"]) for row in rows if (row["task"], row["method"]) == (task.name, name)]
            cells.append(_cell(_mean(own)))
        print(f"{task.name:<22}" + "".join(f"{cell:>12}" for cell in cells))
    for key in ("product", "low", "high", "behaviour", "coherence", "harmonic", "best_in_sample", "paper_in_sample"):
        print(f"{key:<22}" + "".join(f"{_cell(summary[name][key]):>12}" for name in names))
    for key in ("runs", "scored"):
        print(f"{key:<22}" + "".join(f"{summary[name][key]:>12}" for name in names))


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _shown(row: dict[str, Any]) -> str:
    return f"gap: {row['error']}" if row["error"] else f"product {_cell(_mean(row['values']))} at {row['strengths']}"


def _options() -> argparse.Namespace:
    data = os.environ.get("STEERSMAN_TEST_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tasks", type=Path, nargs="?", default=Path(data) / "behaviours" / "sae_ts_tasks")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--judge", default="local")
    parser.add_argument("--out", type=Path, default=Path("methods-bench"), help="folder where everything is kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
