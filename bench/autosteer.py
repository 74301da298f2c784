"""Auto-steering against the best single feature, contrastive activation addition and prompting: 19 behaviours, 3 seeds.

The nine tasks of SAE-TS (arXiv:2411.02193) as instructions, and ten styles. In each cell, behaviour by seed, `autosteer` runs
with its defaults; then, on the same examples, prompts and judges, a CAA vector and the best single SAE feature get their
strength chosen the same way. "Insisted" is prompting as strong as it gets: a system prompt, and the behaviour again behind the
question, which is how the examples were made. Cells are kept in a folder; the same command goes on where it stopped. The last
line is one JSON object.

    python bench/autosteer.py [--out FOLDER] [--seeds 0 1 2] [--only pirate french] [--show]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from steersman.auto.autosteer import AutoSettings, autosteer
from steersman.auto.contrast_set import phrasings
from steersman.auto.facts import AutoResult, Behaviour
from steersman.auto.prompts import split_prompts
from steersman.auto.prove import proving_judges, scored
from steersman.auto.strength import choose_strength
from steersman.auto.task import Task
from steersman.auto.writing import SLOTS, asking, write
from steersman.engine.engine import Engine, EngineLimits
from steersman.errors import SteersmanError
from steersman.files import write_bytes
from steersman.judges.local import LocalJudge
from steersman.models.load import load_model
from steersman.models.sentence_encoder import SentenceEncoder, load_encoder
from steersman.sae.index.file import load_index
from steersman.sae.library import find_sae
from steersman.steering.methods import caa
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe

BEHAVIOURS = {
    "anger": "Sound angry and furious.",
    "christian_evangelist": "Talk about Christianity and its virtues.",
    "conspiracy": "Suspect a secret conspiracy behind everything.",
    "french": "Answer in French.",
    "london": "Mention London in everything you say.",
    "love": "Speak with words of love and affection.",
    "praise": "Praise the user.",
    "want_to_die": "Talk like someone who wants to die.",
    "wedding": "Relate everything to weddings.",
    "child-friendly": "Explain things in a way that children can understand.",
    "pirate": "Talk like a pirate.",
    "formal": "Write in a very formal and official style.",
    "slang": "Talk in casual slang, like a teenager who texts a friend.",
    "enthusiastic": "Be extremely enthusiastic and excited.",
    "poetic": "Answer in rhyming verse, like a poem.",
    "fairy-tale": "Tell everything as a fairy tale that begins with once upon a time.",
    "shakespeare": "Speak like a character in a play by Shakespeare, with thou and thee.",
    "reporter": "Speak like a television reporter with breaking news.",
    "numbered-list": "Answer with a numbered list of steps.",
}
WAYS = ("plain", "steered", "single", "caa", "prompted", "insisted", "random")
_SINGLES, _ROUGH, _ROUGH_PROMPTS = 6, (0.15, 0.3), 4
"""Features that may be the best single one, at how many strengths and on how many validation prompts they are compared."""
_SINGLE_AROUND = 0.3


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("bench-autosteer"), help="folder of the cells")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(BEHAVIOURS), default=list(BEHAVIOURS), metavar="NAME")
    parser.add_argument("--show", action="store_true", help="print answers, to be read")
    options = parser.parse_args()
    engine, encoder = Engine(load_model(), EngineLimits(slots=SLOTS)), load_encoder()
    cells = []
    for seed in options.seeds:
        for name in options.only:
            path = options.out / f"{name}-{seed}.json"
            if not path.exists():
                options.out.mkdir(parents=True, exist_ok=True)
                write_bytes(path, json.dumps(measure(engine, encoder, name, seed)).encode())
            cells.append(json.loads(path.read_text()))
            print(row(cells[-1]), flush=True)
            if options.show:
                show(cells[-1])
    print(json.dumps(summary(cells)))


def measure(engine: Engine, encoder: SentenceEncoder, name: str, seed: int) -> dict[str, Any]:
    """One cell: all ways of answering, on the same held-out prompts."""
    behaviour, settings = Behaviour(description=BEHAVIOURS[name]), AutoSettings(seed=seed)
    began = time.perf_counter()
    try:
        result = autosteer(engine, behaviour, encoder=encoder, settings=settings)
    except SteersmanError as error:
        return {"name": name, "seed": seed, "failed": str(error), "seconds": time.perf_counter() - began}
    task = task_of(engine, encoder, result, seed)
    judges, test = (
        proving_judges(task, encoder),
        split_prompts(seed, settings.train, settings.validation, settings.test).test,
    )
    single, feature = best_single(task, result)
    recipes = {"single": single, "caa": caa_of(task)}
    requests = [asking(prompt, recipe, tokens=48) for recipe in recipes.values() for prompt in test]
    insisted = [phrasings(behaviour, prompt)[0] for prompt in test]
    requests += [asking(said, system=system, tokens=48) for said, system in insisted]
    written = write(engine, requests)
    answers = {way: written[at * len(test) : (at + 1) * len(test)] for at, way in enumerate((*recipes, "insisted"))}
    scores = {**result.evidence.scores, **scored(task, test, answers, judges)}
    choice = result.evidence.choice_accuracy
    return {
        "name": name,
        "seed": seed,
        "scores": {
            way: {part: getattr(scores[way], part).mean for part in ("behaviour", "coherence", "product")}
            for way in WAYS
        },
        "choices": {"plain": choice.plain, "steered": choice.steered} if choice else None,
        "verdict": result.evidence.verdict,
        "seconds": result.seconds,
        "strength": result.strength,
        "single": feature,
        "features": [[each.id, each.weight, each.label] for each in result.features],
        "examples": [
            {"prompt": e.prompt, "steered": e.steered, "prompted": e.prompted, "caa": answers["caa"][at]}
            for at, e in enumerate(result.evidence.examples)
        ],
        "kept": len(result.contrast.train),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def task_of(engine: Engine, encoder: SentenceEncoder, result: AutoResult, seed: int) -> Task:
    """The task that auto-steering worked on, for the methods beside it."""
    entry = find_sae("default")
    sae = entry.load(str(engine.model.device))
    index = load_index(entry.index_folder, sae.ref(entry.name))
    judge = LocalJudge(engine, encoder)
    return Task(result.behaviour, engine, sae, index, judge, result.contrast, seed, lambda *_: None)


def caa_of(task: Task) -> Recipe:
    """Contrastive activation addition at the SAE's layer, its strength chosen like that of auto-steering."""
    pairs = [Pair.answers(item.prompt, item.positive, item.negative) for item in task.contrast.train]
    layer = task.sae.config.layer
    recipe = caa.fit(task.model, pairs, profile=task.engine.profile, layers=[layer], name="caa")
    # Two to two and a half times the difference is usual; the factors reach from one to three.
    return at_best(task, recipe, 2.0 * recipe.edits[0].strength)


def best_single(task: Task, result: AutoResult) -> tuple[Recipe, int]:
    """The best of the retrieval's first candidates, each alone; its strength is chosen like that of auto-steering."""
    candidates = result.candidates[:_SINGLES]
    prompts = [item.prompt for item in task.contrast.validation][:_ROUGH_PROMPTS]
    recipes = {each.id: task.recipe({each.id: 1.0 if each.score > 0 else -1.0}, 1.0) for each in candidates}
    asked = [(feature, length, prompt) for feature in recipes for length in _ROUGH for prompt in prompts]
    answers = write(task.engine, [asking(prompt, recipes[f], strength=length) for f, length, prompt in asked])
    verdicts = task.judged([prompt for *_, prompt in asked], answers)
    scores: dict[tuple[int, float], list[float]] = {}
    for (feature, length, _), verdict in zip(asked, verdicts, strict=True):
        scores.setdefault((feature, length), []).append(verdict.product or 0.0)
    feature = max(scores, key=lambda key: fmean(scores[key]))[0]
    return at_best(task, recipes[feature], _SINGLE_AROUND), feature


def at_best(task: Task, recipe: Recipe, around: float) -> Recipe:
    """The recipe at the strength that does best on the validation prompts."""
    prompts = split_prompts(task.seed, AutoSettings().train, AutoSettings().validation, AutoSettings().test)
    strength, tried = choose_strength(task, recipe, prompts.validation, around)
    length = strength or min(each for each in tried if each)
    return replace(recipe, edits=tuple(replace(edit, strength=length) for edit in recipe.edits))


def row(cell: dict[str, Any]) -> str:
    """A cell in a line."""
    if "failed" in cell:
        return f"{cell['name']:22s} {cell['seed']}  failed: {cell['failed'][:120]}"
    products = "  ".join(f"{way} {cell['scores'][way]['product']:.2f}" for way in WAYS)
    choices = cell["choices"]
    return (
        f"{cell['name']:22s} {cell['seed']}  {products}  choices {choices['plain']:.3f} > {choices['steered']:.3f}  "
        f"{cell['verdict']}  {cell['seconds']:.0f} s"
    )


def summary(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and ratios over cells, with bootstrap intervals over behaviours."""
    done = [cell for cell in cells if "failed" not in cell]
    names = sorted({cell["name"] for cell in done})
    means = {way: fmean(cell["scores"][way]["product"] for cell in done) for way in WAYS} if done else {}
    drawn = random.Random(0)
    ratios: dict[str, list[float]] = {way: [] for way in WAYS if way != "steered"}
    for _ in range(2000):
        sample = [cell for name in drawn.choices(names, k=len(names)) for cell in done if cell["name"] == name]
        steered = fmean(cell["scores"]["steered"]["product"] for cell in sample)
        for way, found in ratios.items():
            found.append(steered / fmean(cell["scores"][way]["product"] for cell in sample))
    return {
        "cells": len(cells),
        "scored": len(done),
        "behaviours": len(names),
        "product": {way: round(mean, 4) for way, mean in means.items()},
        "steered_over": {
            way: [round(means["steered"] / means[way], 3), *(round(sorted(found)[at], 3) for at in (49, 1949))]
            for way, found in ratios.items()
        },
        "choices_lost": round(fmean(cell["choices"]["plain"] - cell["choices"]["steered"] for cell in done), 4),
        "proven": sum(cell["verdict"] == "proven" for cell in done),
        "seconds": round(fmean(cell["seconds"] for cell in done), 1),
        "memory_mb": max(cell["memory_mb"] for cell in done),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }


def show(cell: dict[str, Any]) -> None:
    """Print what was written."""
    for each in cell.get("examples", [])[:3]:
        for way, text in each.items():
            print(f"    {way:9s} {text!r}")


if __name__ == "__main__":
    main()
