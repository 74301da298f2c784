"""Fit a steering vector from examples and watch the bundled model answer, plain and steered. This is `make demo`.

No network is needed once the model is in the cache. The questions are none of those that the vectors were fitted on.
"""

from __future__ import annotations

import time

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Result, Sampling
from steersman.models.language_model import chat
from steersman.models.load import load_model
from steersman.steering.methods import caa
from steersman.steering.pairs import load_named

QUESTIONS = ("What is money?", "How do airplanes fly?", "What is the internet?")
STYLES = {"for-children": 2.0, "pirate": 2.0}
LAYER = 9


def main() -> None:
    """Fit two styles, answer three unseen questions in one batch, and print the answers side by side."""
    console = Console(highlight=False)
    started = time.perf_counter()
    model = load_model()
    engine = Engine(model)
    recipes = {
        name: strength * caa.fit(model, load_named(name), profile=engine.profile, layers=[LAYER], name=name)
        for name, strength in STYLES.items()
    }
    console.print(f"Loaded {model.name} and fitted {len(recipes)} vectors in {time.perf_counter() - started:.1f} s.\n")
    sampling = Sampling(max_tokens=90, repetition_penalty=1.1)
    started = time.perf_counter()
    columns = [None, *recipes.values()]
    requests = [
        Request(prompt=chat(question), recipe=recipe, sampling=sampling) for question in QUESTIONS for recipe in columns
    ]
    results = iter(engine.generate(requests))
    table = Table(expand=True, show_lines=True, box=box.ROUNDED)
    for title in ("question", "plain", *recipes):
        table.add_column(title, ratio=1 if title == "question" else 3)
    for question in QUESTIONS:
        table.add_row(Text(question, style="bold"), *(Text(shown(next(results))) for _ in columns))
    console.print(table)
    console.print(
        f"{len(requests)} answers with {len(recipes)} recipes and none, in one batch on {model.device}: "
        f"{time.perf_counter() - started:.1f} s.\n"
    )
    console.print("Next: steersman fit caa pirate --out pirate.json", markup=False)
    console.print(
        "      steersman generate --recipe pirate.json --strength 2 --compare -p 'Why is the sky blue?'", markup=False
    )


def shown(result: Result) -> str:
    """The answer, with a sign where it was cut off by the token limit."""
    return result.text.strip() + (" …" if result.finish_reason == "length" else "")


if __name__ == "__main__":
    main()
