"""Steering methods on a folder of tasks, as in the SAE-TS paper's table: product per method, strength chosen on held-out halves.

Every (task, method, seed) is kept as it ends, answers and grades too: stopped at any moment, it goes on there. The last line is
one JSON object.

    python bench/methods.py [TASKS] [--methods caa,sae,sae-ts,...] [--seeds 0,1] [--prompts 16] [--tokens 40] [--jobs N]
                            [--out FOLDER] [--report FILE] [--readme]

TASKS: folder of JSON files with `name`, `positive`, `negative` and `score_criterion`, such as the paper's own; by default the
nine of bench/tasks. Another model or SAE wants another --out.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from methods_report import about, as_markdown, as_text, cell, fill_in, mean, ratios, summarise, summary_table
from steersman.engine.engine import Engine, EngineLimits
from steersman.errors import SteersmanError
from steersman.evals.behaviours import EvalBehaviour, load_behaviour
from steersman.evals.evaluate import Tools, evaluate
from steersman.evals.facts import EvalSettings
from steersman.evals.store import Ledger, content_hash
from steersman.evals.tables import facts_of
from steersman.files import sha256_file, write_bytes
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
METHODS = "caa,lat,sae,sae-ts,topic,auto,optimised,prompt,plain,random,wrong-sign"
README = Path(__file__).parents[1] / "README.md"
_CONTROLS = {"prompt", "plain", "random", "wrong-sign"}


def main() -> None:
    """Run what is not done yet, and print the table."""
    options = _options()
    names = [name for name in options.methods.split(",") if name]
    tasks = [load_behaviour(path, DESCRIPTIONS.get(path.stem)) for path in sorted(options.tasks.glob("*.json"))]
    if not tasks:
        sys.exit(f"there are no tasks in {options.tasks}; name the folder of the task files")
    began = time.perf_counter()
    rows = _all_rows(options, tasks, names)
    summary, over = summarise(rows, names), ratios(rows, names)
    print(as_text(summary, [task.name for task in tasks], rows))
    gaps = [{key: row[key] for key in ("task", "method", "seed", "error")} for row in rows if row["error"]]
    if options.report is not None:
        made = as_markdown(summary, over, [task.name for task in tasks], rows, about(options))
        write_bytes(options.report, made.encode())
    if options.readme:
        fill_in(README, summary_table(summary, over))
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
                "ratios": over,
                "gaps": gaps,
                "seconds": round(time.perf_counter() - began, 1),
                "jobs": options.jobs,
                "threads": _threads(options.jobs),
            }
        )
    )


def _all_rows(options: argparse.Namespace, tasks: list[EvalBehaviour], names: list[str]) -> list[dict[str, Any]]:
    """By seed and task; each of these is the work of one process, which has its folder to itself."""
    # Fresh interpreters: a fork of one that has used its threads can hang in the next product of matrices.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, _begin, (_threads(options.jobs),)) as pool:
        running = [pool.submit(_rows, options, task, seed, names) for seed in options.seeds for task in tasks]
        try:
            return [row for each in running for row in each.result()]
        except (KeyboardInterrupt, BrokenProcessPool) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            why = (
                ""
                if isinstance(error, KeyboardInterrupt)
                else " (the system ended a process, perhaps for want of memory)"
            )
            sys.exit(f"\nstopped{why}; what had ended is kept in {options.out}, the same command goes on there")


def _threads(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


def _begin(threads: int) -> None:
    """Settle a new process: an interrupt is for the first one, which speaks for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _rows(options: argparse.Namespace, task: EvalBehaviour, seed: int, names: list[str]) -> list[dict[str, Any]]:
    folder = options.out / task.name / f"seed-{seed}"
    bench, done = _bench(options.judge), Ledger(folder / "done.jsonl")
    return [bench.row(task, name, seed, done, options) for name in names]


class _Bench:
    """The model and its tools, loaded when the first run is not done yet."""

    def __init__(self, judge: str) -> None:
        self.judge = judge
        self.engine: Engine | None = None
        self.tools: Tools | None = None

    def row(self, task: EvalBehaviour, name: str, seed: int, done: Ledger, o: argparse.Namespace) -> dict[str, Any]:
        """What one method came to on one task with one seed; from before where it was done."""
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
            row |= self._run(task, name, seed, done.path.parent, o)
        except SteersmanError as error:
            row["error"] = str(error)
        if row["error"] is None:  # What failed is tried again the next time.
            done.put({key: row})
        print(f"{task.name:<22}{name:<12}seed {seed}  {_shown(row)}", file=sys.stderr, flush=True)
        return row

    def _run(self, task: EvalBehaviour, name: str, seed: int, folder: Path, o: argparse.Namespace) -> dict[str, Any]:
        if self.engine is None or self.tools is None:
            self.engine = Engine(load_model(), EngineLimits(slots=32))
            self.tools = Tools(load_encoder(), self.judge)
        # A control of another method needs that method: CAA, whose answers are on disk by then.
        methods = [name] if name not in _CONTROLS else ["caa", name]
        settings = EvalSettings(prompts=o.prompts, tokens=o.tokens, seed=seed)
        found = evaluate(self.engine, task, folder, tools=self.tools, methods=methods, settings=settings)
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


@functools.cache
def _bench(judge: str) -> _Bench:
    """One for a process."""
    return _Bench(judge)


def _map_hash() -> str:
    """Of the shipped SAE's effect map: a new map makes new vectors."""
    path = find_sae().folder / MAP_FILE
    return sha256_file(path) if path.is_file() else ""


def _shown(row: dict[str, Any]) -> str:
    return f"gap: {row['error']}" if row["error"] else f"product {cell(mean(row['values']))} at {row['strengths']}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tasks", type=Path, nargs="?", default=Path(__file__).parent / "tasks")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--judge", default="local")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, of 3 GB each")
    parser.add_argument("--out", type=Path, default=Path("methods-bench"), help="folder where everything is kept")
    parser.add_argument("--report", type=Path, help="Markdown file for the tables")
    parser.add_argument("--readme", action="store_true", help="write the README's table anew")
    return parser.parse_args()


if __name__ == "__main__":
    main()
