"""`steersman traits`: the traits that ship, what proves each, and new ones from nothing but a name.

Exit code beside the usual ones: 3 when the evidence does not support the new trait (the recipe is written all the same).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.cli.autosteer import UNPROVEN, endpoint_of_settings
from steersman.cli.autosteer_view import Watch, clean, watching
from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    load,
    load_encoder,
    out,
    print_json,
    profile,
    refuse_overwrite,
)
from steersman.errors import RecipeError

if TYPE_CHECKING:
    from steersman.auto.facts import Evidence
    from steersman.steering.recipe import Recipe

app = typer.Typer(help="Traits by name: those that ship, and new ones.", no_args_is_help=True)

TraitArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the trait.", show_default=False)]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """The traits that ship, with what steering does: product of behaviour and coherence, plain and steered."""
    from steersman.steering.traits import left_out, load_trait, names

    recipes, tried = [load_trait(name) for name in names()], left_out()
    if as_json:
        dropped = [
            {"name": name, "description": each.description, "reason": each.reason} for name, each in tried.items()
        ]
        print_json({"traits": [_facts(recipe) for recipe in recipes], "left_out": dropped})
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for title in ("trait", "plain", "steered"):
        table.add_column(title, justify="left" if title == "trait" else "right", no_wrap=True)
    table.add_column("asked for")
    for recipe in recipes:
        scores = _evidence(recipe).scores
        table.add_row(
            recipe.name, *(_number(scores[way].product.mean) for way in ("plain", "steered")), recipe.description
        )
    screen = out()
    screen.print(table)
    if tried:
        screen.print(f"tried and left out: {', '.join(tried)}", style="dim", markup=False)
    screen.print("look closer: steersman traits show NAME", style="dim", markup=False)


@app.command()
def show(
    name: TraitArgument,
    to: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the recipe there as well (JSON; tensors go beside it).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the recipe if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """One trait: what it does, the evidence, and an answer at multipliers -1, 0 and 1."""
    from steersman.steering.traits import load_trait

    recipe = load_trait(name)
    if to is not None:
        _save(recipe, to, force)
    if as_json:
        print_json({**_facts(recipe), "evidence": recipe.evidence, "data": recipe.data})
        return
    _print(recipe)
    if to is not None:
        out().print(f"wrote {to}", markup=False, soft_wrap=True)


@app.command()
def train(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Of the trait, or a sentence that says how to behave.", show_default=False),
    ],
    to: Annotated[
        Path,
        typer.Option("--out", "-o", help="Where to write the recipe (JSON; tensors go beside it).", show_default=False),
    ],
    layer: Annotated[
        list[int] | None,
        typer.Option("--layer", "-l", help="Decoder block to try, from 0; may be repeated, and the best stays."),
    ] = None,
    llm: Annotated[
        bool, typer.Option("--llm", help="Let the endpoint that the environment names write the examples.")
    ] = False,
    model: ModelOption = "default",
    seed: Annotated[int, typer.Option(help="Of the choice of prompts.")] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the recipe if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a training set for a trait, fit a vector on it and prove it. Exit code 3: the evidence does not support it."""
    from steersman.auto.trait_set import TraitSettings, check_trait, fit_trait
    from steersman.auto.writing import SLOTS
    from steersman.engine.engine import Engine, EngineLimits

    _refuse(to, force)
    ask = endpoint_of_settings() if llm else None
    settings = TraitSettings(layers=tuple(layer or ()), seed=seed)
    language_model = load(model, device, dtype)
    check_trait(language_model, name)
    engine = Engine(language_model, EngineLimits(slots=SLOTS), profile=profile(language_model))
    encoder = load_encoder()
    with watching(Watch(name)) as report:
        recipe = fit_trait(engine, name, encoder=encoder, settings=settings, ask=ask, report=report)
    _save(recipe, to, force)
    evidence = _evidence(recipe)
    if as_json:
        print_json({**_facts(recipe), "recipe": str(to), "evidence": recipe.evidence, "data": recipe.data})
    else:
        _print(recipe)
        out().print(f"wrote {to}", markup=False, soft_wrap=True)
    if evidence.verdict != "proven":
        print(f"{evidence.verdict}: the evidence does not support this trait: {clean(evidence.why)}", file=sys.stderr)
        raise typer.Exit(UNPROVEN)


def _facts(recipe: Recipe) -> dict[str, Any]:
    evidence = _evidence(recipe)
    return {
        "name": recipe.name,
        "description": recipe.description,
        "method": recipe.method,
        "edits": [{"layer": edit.layer, "strength": edit.strength} for edit in recipe.edits],
        "verdict": evidence.verdict,
        "products": {way: scores.product.mean for way, scores in evidence.scores.items()},
    }


def _evidence(recipe: Recipe) -> Evidence:
    from pydantic import TypeAdapter

    from steersman.auto.facts import Evidence

    return TypeAdapter(Evidence).validate_python(recipe.evidence, strict=False)


def _print(recipe: Recipe) -> None:
    from rich import box
    from rich.table import Table

    screen, evidence = out(), _evidence(recipe)
    screen.print(clean(recipe.name), style="bold", markup=False)
    screen.print(clean(recipe.description), markup=False)
    screen.print(f"{evidence.verdict}: {clean(evidence.why)}", markup=False)
    table = Table(box=box.SIMPLE)
    for title in ("", "behaviour", "coherence", "product", "95 % interval", "scored"):
        table.add_column(title, justify="left" if not title else "right")
    for way, scores in evidence.scores.items():
        means = [_number(each.mean) for each in (scores.behaviour, scores.coherence, scores.product)]
        product = scores.product
        table.add_row(
            way, *means, f"{_number(product.low)} to {_number(product.high)}", f"{product.n} of {product.total}"
        )
    screen.print(table)
    shown: Any = recipe.data["multipliers"]
    screen.print(f"asked: {clean(shown['prompt'])}", style="dim", markup=False)
    for multiplier in ("-1", "0", "1"):
        screen.print(f"at {multiplier:>2}: {clean(shown[multiplier])}", markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _refuse(path: Path, force: bool) -> None:
    """Now rather than after the work."""
    from steersman.steering.recipe_file import tensor_path

    if path.suffix == ".safetensors":
        raise RecipeError(f"{path} is a name for tensors; save the recipe as {path.with_suffix('.json').name}")
    for each in (path, tensor_path(path)):
        refuse_overwrite(each, force)


def _save(recipe: Recipe, path: Path, force: bool) -> None:
    from steersman.steering.recipe_file import save_recipe

    _refuse(path, force)
    save_recipe(recipe, path)
