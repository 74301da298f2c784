"""CAA's A/B behaviours on the bundled model: does the probability of the matching answer rise with the multiplier?

A CAA vector is fitted at one layer (or several) on the letters of the training questions, as many of which match A as B, and the
probability of the matching letter on the test questions is read at every multiplier (arXiv:2312.06681, section 4). Behaviours
are measured one after another and kept in `--keep`, so that a run that was broken off goes on. The last line is one JSON object.

    python bench/ab.py --data FOLDER [--behaviour NAME] [--layers 14] [--train 100] [--test 50] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from steersman.engine.engine import Engine
from steersman.evals.ab import AbItem, ab_pairs, load_ab
from steersman.evals.curve_files import PointFolder, curve_facts
from steersman.evals.curves import Curve, measure_curves, parse_multipliers
from steersman.evals.items import Gap
from steersman.evals.probes import ab_probe
from steersman.models.load import load_model
from steersman.steering.methods import caa
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe
from steersman.steering.where import Where

TRAIN, TEST = "train_generate_dataset.json", "test_dataset_ab.json"


def main() -> None:
    """Fit, measure and print, one behaviour after another."""
    options = parsed()
    folders = sorted(path.parent for path in options.data.glob(f"*/{TEST}"))
    folders = [folder for folder in folders if not options.behaviour or folder.name in options.behaviour]
    if not folders:
        raise SystemExit(f"no behaviours in {options.data}; each is a folder with {TRAIN} and {TEST}")
    engine = Engine(load_model())
    rows = []
    for folder in folders:
        began = time.perf_counter()
        curve = measured(engine, folder, options)
        rows.append(row_of(curve, time.perf_counter() - began))
        report(rows[-1], curve)
    rising = [row["behaviour"] for row in rows if row["rises"]]
    print(f"\nrises at every step: {len(rising)} of {len(rows)} ({', '.join(rising) or 'none'})")
    summary = {
        "bench": "ab",
        "layers": options.layers,
        "where": options.where,
        "scale": options.scale,
        "train": options.train,
        "test": options.test,
        "seed": options.seed,
        "multipliers": list(options.multipliers),
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
    parser.add_argument("--behaviour", action="append", help="only this one; may be repeated")
    parser.add_argument("--layers", type=lambda text: [int(x) for x in text.split(",")], default=[14])
    parser.add_argument("--where", choices=("all", "prompt", "generated"), default="all", help="tokens that are edited")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the fitted difference at multiplier 1")
    parser.add_argument("--train", type=int, default=100, help="pairs to fit on, at most")
    parser.add_argument("--test", type=int, default=50, help="questions to measure on, at most")
    parser.add_argument("--multipliers", type=parse_multipliers, default=parse_multipliers("-2,-1,0,1,2"))
    parser.add_argument("--seed", type=int, default=0, help="draws pairs and questions")
    parser.add_argument("--keep", type=Path, help="folder for recipes' points and results; a run goes on from it")
    return parser.parse_args()


def measured(engine: Engine, folder: Path, options: argparse.Namespace) -> Curve:
    """The curve of one behaviour; points that were kept are not measured again."""
    pairs = ab_pairs(balanced(load_ab(folder / TRAIN).items, options.train, options.seed))
    recipe = fitted(engine, folder.name, pairs, options)
    points = PointFolder(options.keep / "points", engine.model.ref, recipe) if options.keep else None
    probe = ab_probe(folder / TEST, options.test, options.seed)
    return measure_curves(engine, recipe, [probe], options.multipliers, points=points)[0]


def balanced(items: Sequence[AbItem | Gap], n: int, seed: int) -> list[AbItem]:
    """At most `n` items, as many that match A as B: else the vector tells letters apart, not behaviours."""
    sides: list[list[AbItem]] = [
        [item for item in items if isinstance(item, AbItem) and (item.matching, item.other) == letters]
        for letters in (("A", "B"), ("B", "A"))
    ]
    each = min(n // 2, *map(len, sides))
    return [item for number, side in enumerate(sides) for item in random.Random(f"{seed}/{number}").sample(side, each)]


def fitted(engine: Engine, name: str, pairs: Any, options: argparse.Namespace) -> Recipe:
    """The CAA recipe, from disk where the same one was fitted before."""
    layers = "-".join(map(str, options.layers))
    path: Path | None = options.keep and options.keep / f"{name}.{layers}.{options.train}.{options.seed}.recipe.json"
    recipe: Recipe
    if path and path.exists():
        recipe = load_recipe(path)
    else:
        recipe = caa.fit(engine.model, pairs, profile=engine.profile, layers=options.layers, name=name, read="last")
        if path:
            save_recipe(recipe, path)
    where = Where(scope=options.where)
    edits = tuple(dataclasses.replace(edit, where=where) for edit in recipe.edits)
    return dataclasses.replace(recipe, edits=edits) * float(options.scale)


def row_of(curve: Curve, seconds: float) -> dict[str, Any]:
    """What is said of a behaviour."""
    return {
        "behaviour": curve.name,
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
    print(
        f"{curve.name:<24}{'rises' if row['rises'] else 'does not rise'} at every step; {row['seconds']} s", flush=True
    )


if __name__ == "__main__":
    main()
