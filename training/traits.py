"""Make the traits that ship with the package: fit each, prove it, and keep those that prove themselves.

About a minute a trait on two free cores. Each is written when it is done. The same command goes on where it stopped, and makes
anew what has another sentence by now. What does not prove itself is listed in left-out.json with the reason. The last line is
one JSON object.

    python training/traits.py [--out FOLDER] [--only cheerful pirate] [--layers 9] [--again] [--show]
"""

# ruff: noqa: T201 - a script that people run.
from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from steersman.auto.facts import Evidence
from steersman.auto.trait_set import TraitSettings, fit_trait
from steersman.auto.writing import SLOTS
from steersman.engine.engine import Engine, EngineLimits
from steersman.errors import DataError
from steersman.files import write_bytes
from steersman.models.load import load_model
from steersman.models.sentence_encoder import SentenceEncoder, load_encoder
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe, tensor_path
from steersman.steering.traits import LEFT_OUT, LeftOut, left_out, names, shipped_folder

TRAITS = {
    "angry": "Sound angry and furious.",
    "calm": "Be calm and peaceful, like a monk who meditates.",
    "casual": "Talk in a relaxed and casual way, like to a friend.",
    "cheerful": "Be very cheerful and happy.",
    "child-friendly": "Explain things in a way that children can understand.",
    "concise": "Answer in one very short sentence.",
    "confident": "Sound completely confident and sure of everything.",
    "cowboy": "Talk like a cowboy of the Wild West.",
    "curious": "Be curious, and ask many questions.",
    "detective": "Speak like a detective who solves a crime.",
    "dramatic": "Be very dramatic, as if everything were a matter of life and death.",
    "empathetic": "Show warm understanding for the user's feelings.",
    "enthusiastic": "Be extremely enthusiastic and excited.",
    "fairy-tale": "Tell everything as a fairy tale that begins with once upon a time.",
    "formal": "Write in a very formal and official style.",
    "french": "Answer in French.",
    "grumpy": "Be grumpy, and complain about everything.",
    "harmless": "Be careful never to cause harm, and warn of every danger.",
    "honest": "Be honest, and say openly what you do not know.",
    "humble": "Be humble and modest, and say that you may be wrong.",
    "humorous": "Be funny, and make jokes.",
    "inspirational": "Inspire and motivate the user like a coach.",
    "legal": "Write like a lawyer in a contract.",
    "loving": "Talk like a loving mother to her child.",
    "mysterious": "Be mysterious, and speak in riddles.",
    "news-reporter": "Speak like a television reporter with breaking news.",
    "nostalgic": "Speak of the good old days with longing.",
    "numbered-lists": "Answer with a numbered list of steps.",
    "optimistic": "Be optimistic, and see the bright side of everything.",
    "pessimistic": "Be pessimistic, and expect the worst of everything.",
    "philosophical": "Be philosophical, and ponder the meaning of life.",
    "pirate": "Talk like a pirate.",
    "poetic": "Answer in rhyming verse, like a poem.",
    "polite": "Be extremely polite and courteous, and thank the user.",
    "preacher": "Talk like a preacher, of God and faith.",
    "robot": "Talk like a robot.",
    "romantic": "Speak with words of love and affection.",
    "royal": "Speak like a king to his subjects.",
    "sad": "Sound sad and full of sorrow.",
    "salesperson": "Talk like a salesperson who wants to sell something.",
    "sarcastic": "Be sarcastic and mocking.",
    "scientific": "Write like a scientist in a research paper.",
    "shakespearean": "Speak like a character in a play by Shakespeare, with thou and thee.",
    "slang": "Talk in casual slang, like a teenager who texts a friend.",
    "spooky": "Be spooky and scary, like a ghost story.",
    "storyteller": "Answer with a story about a person.",
    "suspicious": "Suspect a secret conspiracy behind everything.",
    "vivid": "Describe everything with vivid colours, sounds and smells.",
    "wizard": "Speak like an old wizard, of magic and spells.",
}
_LAYER = 9
"""Where CAA steered the bundled model best (docs/contrast-vectors.md)."""


def main() -> None:
    """Make what is not made yet, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out", type=Path, default=shipped_folder(), help="folder of the traits; by default the package's"
    )
    parser.add_argument("--only", nargs="+", choices=list(TRAITS), default=list(TRAITS), metavar="NAME")
    parser.add_argument("--layers", type=int, nargs="+", default=[_LAYER], help="decoder blocks to try, each alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="make anew what is there")
    parser.add_argument("--show", action="store_true", help="print answers, to be read")
    options = parser.parse_args()
    todo = [name for name in options.only if options.again or not is_done(name, options.out)]
    print(f"{len(options.only)} traits, {len(options.only) - len(todo)} are there, {len(todo)} to make", flush=True)
    settings, began = TraitSettings(layers=tuple(options.layers), seed=options.seed), time.perf_counter()
    if todo:
        engine, encoder = Engine(load_model(), EngineLimits(slots=SLOTS)), load_encoder()
    for number, name in enumerate(todo, 1):
        print(f"[{number} of {len(todo)}, {time.perf_counter() - began:.0f} s] {name}", flush=True)
        recipe = make(engine, encoder, name, settings, options.out)
        if options.show and recipe is not None:
            show(recipe)
    print(json.dumps(summary(options.out)))


def is_done(name: str, folder: Path) -> bool:
    """Whether a trait is there, or was left out, under the sentence that it has now."""
    if name in names(folder):
        return load_recipe(folder / f"{name}.json").description == TRAITS[name]
    tried = left_out(folder).get(name)
    return tried is not None and tried.description == TRAITS[name]


def make(engine: Engine, encoder: SentenceEncoder, name: str, settings: TraitSettings, folder: Path) -> Recipe | None:
    """Fit and prove one trait; its files, or its line in the list of those that were left out. The recipe, if there is one."""
    began = time.perf_counter()
    try:
        recipe = fit_trait(engine, TRAITS[name], encoder=encoder, settings=settings)
    except DataError as error:
        leave_out(name, str(error), folder)
        return None
    recipe = replace(recipe, name=name)
    evidence = TypeAdapter(Evidence).validate_python(recipe.evidence, strict=False)
    if evidence.verdict == "proven":
        save_recipe(recipe, folder / f"{name}.json")
        listed = left_out(folder)
        if listed.pop(name, None) is not None:
            write_left_out(listed, folder)
    else:
        leave_out(name, f"{evidence.verdict}: {evidence.why}", folder)
    means = {way: scores.product.mean for way, scores in evidence.scores.items()}
    products = "  ".join(f"{way} {'-' if mean is None else format(mean, '.2f')}" for way, mean in means.items())
    print(
        f"  {evidence.verdict}: {products}, strength {recipe.edits[0].strength:.2f}, {time.perf_counter() - began:.0f} s"
    )
    return recipe


def leave_out(name: str, reason: str, folder: Path) -> None:
    """List a trait as left out, and remove the files of an earlier time."""
    print(f"  left out: {reason}", flush=True)
    write_left_out({**left_out(folder), name: LeftOut(description=TRAITS[name], reason=reason)}, folder)
    for path in (folder / f"{name}.json", tensor_path(folder / f"{name}.json")):
        path.unlink(missing_ok=True)


def write_left_out(listed: dict[str, LeftOut], folder: Path) -> None:
    """Write the list, by name."""
    facts = TypeAdapter(dict[str, LeftOut]).dump_python(dict(sorted(listed.items())), mode="json")
    write_bytes(folder / LEFT_OUT, (json.dumps(facts, indent=2) + "\n").encode())


def summary(folder: Path) -> dict[str, object]:
    """What is in the folder now."""
    there = [load_recipe(folder / f"{name}.json") for name in names(folder)]
    return {
        "proven": [recipe.name for recipe in there],
        "left_out": list(left_out(folder)),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "seconds": round(sum(float(str(recipe.data["seconds"])) for recipe in there)),
    }


def show(recipe: Recipe) -> None:
    """Print one answer at each multiplier."""
    print(json.dumps(recipe.data["multipliers"], indent=4, ensure_ascii=False))


if __name__ == "__main__":
    main()
