"""CAA's A/B behaviours on the bundled model: does the probability of the matching answer rise with the multiplier?

A CAA vector is fitted on training questions, as many of which match A as B. Its layer and its length at multiplier 1 are
chosen on other training questions: where the probability of the matching answer rises at the most steps, then where it rises
most. The test questions are then read once, at every multiplier (arXiv:2312.06681, section 4). Answers are letters, as in the
paper, or texts (`--by text`), for a model that cannot tie letters to what they stand for. Behaviours are measured one after
another and kept in `--keep`, so that a run that was broken off goes on. The last line is one JSON object.

    python bench/ab.py --data FOLDER [--by text] [--behaviour NAME] [--layers 9,13,17] [--strengths 0.1,0.2,0.4] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

from steersman.engine.engine import Engine
from steersman.evals.ab import AbItem, AnsweredBy, ab_pairs, load_ab
from steersman.evals.curve_files import PointFolder, curve_facts
from steersman.evals.curves import Curve, Probe, measure_curves, parse_multipliers
from steersman.evals.items import Gap, ItemFile
from steersman.evals.probes import ab_items_probe, ab_probe
from steersman.models.load import load_model
from steersman.steering.contrast import Read
from steersman.steering.methods import caa
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe
from steersman.steering.where import Where

TRAIN, TEST = "train_generate_dataset.json", "test_dataset_ab.json"


def main() -> None:
    """Fit, choose, measure and print, one behaviour after another."""
    options = parsed()
    folders = sorted(path.parent for path in options.data.glob(f"*/{TEST}"))
    folders = [folder for folder in folders if not options.behaviour or folder.name in options.behaviour]
    if not folders:
        raise SystemExit(f"no behaviours in {options.data}; each is a folder with {TRAIN} and {TEST}")
    engine = Engine(load_model())
    rows = []
    for folder in folders:
        began = time.perf_counter()
        recipe, curve = measured(engine, folder, options)
        rows.append(row_of(recipe, curve, time.perf_counter() - began))
        report(rows[-1], curve)
    rising = [row["behaviour"] for row in rows if row["rises"]]
    print(f"\nrises at every step: {len(rising)} of {len(rows)} ({', '.join(rising) or 'none'})")
    asked = ("by", "layers", "strengths", "where", "train", "choose", "test", "seed", "multipliers")
    summary = {
        "bench": "ab",
        **{name: getattr(options, name) for name in asked},
        "rising": len(rising),
        "behaviours": len(rows),
        "rows": rows,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(summary))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each behaviour")
    parser.add_argument("--by", choices=get_args(AnsweredBy), default="letter", help="what stands for an answer")
    parser.add_argument("--behaviour", action="append", help="only this one; may be repeated")
    parser.add_argument("--layers", type=listed(int), default=[9, 13, 17], help="to choose among")
    parser.add_argument(
        "--strengths", type=listed(float), default=[0.1, 0.2, 0.4], help="at multiplier 1, to choose among"
    )
    parser.add_argument("--where", choices=("all", "prompt", "generated"), default="all", help="tokens that are edited")
    parser.add_argument("--train", type=int, default=100, help="questions to fit on, at most")
    parser.add_argument("--choose", type=int, default=40, help="further training questions to choose on, at most")
    parser.add_argument("--test", type=int, default=50, help="questions to measure on, at most")
    parser.add_argument("--multipliers", type=parse_multipliers, default=parse_multipliers("-2,-1,0,1,2"))
    parser.add_argument("--seed", type=int, default=0, help="draws questions")
    parser.add_argument("--keep", type=Path, help="folder for points; a run goes on from it")
    return parser.parse_args()


def listed(kind: Callable[[str], float]) -> Callable[[str], list[float]]:
    """Reads numbers between commas."""
    return lambda text: [kind(part) for part in text.split(",")]


def measured(engine: Engine, folder: Path, options: argparse.Namespace) -> tuple[Recipe, Curve]:
    """The recipe that was chosen and its curve on the test questions; points that were kept are not measured again."""
    drawn = balanced(load_ab(folder / TRAIN).items, options.train + options.choose, options.seed)
    fitted_on, chosen_on = drawn[: options.train], tuple(drawn[options.train :])

    def curve_of(recipe: Recipe, probe: Probe) -> Curve:
        points = PointFolder(options.keep / "points", engine.model.ref, recipe) if options.keep else None
        return measure_curves(engine, recipe, [probe], options.multipliers, points=points)[0]

    tried = candidates(engine, folder.name, ab_pairs(fitted_on, options.by), options)
    if len(tried) > 1:
        choosing = ab_items_probe(ItemFile(f"{folder.name} (training)", chosen_on), by=options.by)
        trends = [curve_of(recipe, choosing).trend for recipe in tried]
        best = max(range(len(tried)), key=lambda i: (trends[i].steps_up, trends[i].change.mean or 0.0))
        tried = [tried[best]]
    return tried[0], curve_of(tried[0], ab_probe(folder / TEST, options.test, options.seed, by=options.by))


def balanced(items: Sequence[AbItem | Gap], n: int, seed: int) -> list[AbItem]:
    """At most `n` items, by turns such that match A and such that match B: else the vector tells letters apart."""
    sides: list[list[AbItem]] = [
        [item for item in items if isinstance(item, AbItem) and (item.matching, item.other) == letters]
        for letters in (("A", "B"), ("B", "A"))
    ]
    each = min(n // 2, *map(len, sides))
    drawn = [random.Random(f"{seed}/{number}").sample(side, each) for number, side in enumerate(sides)]
    return [item for both in zip(*drawn, strict=True) for item in both]


def candidates(engine: Engine, name: str, pairs: Sequence[Pair], options: argparse.Namespace) -> list[Recipe]:
    """The CAA vector of every layer at every length."""
    read: Read = "last" if options.by == "letter" else "answer"
    fitted = caa.fit(engine.model, pairs, profile=engine.profile, layers=options.layers, name=name, read=read)
    where = Where(scope=options.where)
    return [
        dataclasses.replace(fitted, edits=(dataclasses.replace(edit, where=where, strength=strength),))
        for edit in fitted.edits
        for strength in options.strengths
    ]


def row_of(recipe: Recipe, curve: Curve, seconds: float) -> dict[str, Any]:
    """What is said of a behaviour."""
    [edit] = recipe.edits
    return {
        "behaviour": curve.name,
        "layer": edit.layer,
        "strength": edit.strength,
        "means": [None if (mean := point.value.mean) is None else round(mean, 4) for point in curve.points],
        "rises": curve.trend.rises,
        "steps_up": curve.trend.steps_up,
        "change": {name: round(x, 4) if isinstance(x, float) else x for name, x in asdict(curve.trend.change).items()},
        "missing": curve_facts(curve)["points"][0]["missing"],
        "seconds": round(seconds, 1),
    }


def report(row: dict[str, Any], curve: Curve) -> None:
    """One line a point."""
    for point in curve.points:
        value = point.value
        if value.mean is not None and value.low is not None and value.high is not None:
            shown = f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"
        else:
            shown = "-"
        print(f"{curve.name:<24}{point.multiplier:>6g}  {shown:<26}{value.n} of {value.total}")
    way = "rises at every step" if row["rises"] else f"rises at {row['steps_up']} of {len(curve.points) - 1} steps"
    print(f"{curve.name:<24}{way}; layer {row['layer']}, strength {row['strength']:g}; {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
