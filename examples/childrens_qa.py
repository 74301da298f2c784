"""Answer children's questions with a steered model: is the question fit, the answer, is the answer fit, else again, else no.

    python examples/childrens_qa.py                          the questions of the case study, and one that is refused
    python examples/childrens_qa.py --compare                the plain answers beside them; the second half of `make demo`
    python examples/childrens_qa.py --question "Why is the moon round?" --recipe children/recipe.json
    python examples/childrens_qa.py --measure                how good the local check is, on texts it has not seen

The checks are a small local classifier, or the LLM that STEERSMAN_LLM_URL and STEERSMAN_LLM_MODEL name. A recipe comes from
`steersman autosteer "Explain things in a way that children can understand" --out children`; without one, a vector is fitted
to the examples that ship. Let nobody but a person decide what a real site shows; this is the part that a machine can do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from steersman.auto.suitability import Check, LlmCheck, LocalCheck, measure, reply
from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.models.endpoint import Endpoint
from steersman.models.language_model import chat
from steersman.models.load import load_model
from steersman.models.sentence_encoder import load_encoder
from steersman.settings import Settings
from steersman.steering.methods import caa
from steersman.steering.pairs import load_named
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe

QUESTIONS = (
    "What is a divorce?",
    "What is money?",
    "How do airplanes fly?",
    "How are babies made?",
    "Does Santa exist?",
    "How can I buy cigarettes without my parents noticing?",
)
DEMO_RECIPE = Path("children/recipe.json")
"""Where autosteer's own recipe is looked for."""
LAYER, STRENGTH = 9, 2.0


def main() -> None:
    """Answer the questions, or measure the check."""
    wishes = read_arguments()
    console = Console(highlight=False)
    if wishes.measure:
        show_quality(console)
        return
    engine = Engine(load_model())
    recipe = find_recipe(engine, wishes.recipe)
    check = find_check()
    console.print(f"Steered by {recipe.name} ({recipe.method}); checked by {check.name}.\n", markup=False)
    questions = wishes.question or QUESTIONS
    plain = plain_answers(engine, questions) if wishes.compare else {}
    for question in questions:
        given = reply(engine, check, question, recipe, attempts=wishes.attempts)
        how = f"answer {given.tries} of at most {wishes.attempts}" if given.answered else f"refused: {given.why}"
        console.print(Text(question, style="bold"))
        if question in plain:
            console.print(Text(f"plain    {plain[question]}", style="dim"))
        console.print(Text(f"steered  {given.text}" if question in plain else given.text))
        console.print(Text(f"[{how}]\n", style="dim"))


def plain_answers(engine: Engine, questions: Sequence[str]) -> dict[str, str]:
    """What the model says unsteered."""
    sampling = Sampling(max_tokens=80, repetition_penalty=1.1)
    results = engine.generate([Request(prompt=chat(question), sampling=sampling) for question in questions])
    return {question: result.text.strip() for question, result in zip(questions, results, strict=True)}


def read_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Answer children's questions with a steered model, checked.")
    parser.add_argument("--question", action="append", help="may be repeated; by default those of the case study")
    parser.add_argument("--recipe", type=Path, help=f"by default {DEMO_RECIPE} if it is there, else fitted on the spot")
    parser.add_argument("--compare", action="store_true", help="show the plain model's answers too")
    parser.add_argument("--attempts", type=int, default=3, help="answers that are written at most")
    parser.add_argument(
        "--measure", action="store_true", help="print precision and recall of the local check, and stop"
    )
    return parser.parse_args()


def find_recipe(engine: Engine, path: Path | None) -> Recipe:
    """The recipe that was asked for, the one that autosteer left, or a vector fitted to the shipped examples."""
    if path is not None or DEMO_RECIPE.exists():
        return load_recipe(path or DEMO_RECIPE)
    pairs = load_named("for-children")
    return STRENGTH * caa.fit(engine.model, pairs, profile=engine.profile, layers=[LAYER], name="for-children")


def find_check() -> Check:
    """The LLM that the environment names, else the local classifier, which learns from the shipped texts in a second."""
    settings = Settings.from_env()
    return LlmCheck(Endpoint.from_settings(settings)) if settings.llm_url else LocalCheck.learn(load_encoder().encode)


def show_quality(console: Console) -> None:
    """Precision and recall of the local check in finding what is unfit."""
    for kind, found in measure(load_encoder().encode).items():
        console.print(
            f"{found.n} {kind}s, each half judged by what was learnt from the other half: precision {found.precision:.2f}, "
            f"recall {found.recall:.2f} ({found.found} unfit ones held back, {found.missed} let through, "
            f"{found.false_alarms} fit ones held back)"
        )


if __name__ == "__main__":
    main()
