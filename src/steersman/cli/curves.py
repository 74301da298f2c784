"""`steersman curves`: capability, behaviour and safety of a recipe at every strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    check_choice,
    load,
    out,
    print_json,
    profile,
    usage,
)
from steersman.cli.progress import counting
from steersman.errors import RecipeError
from steersman.files import sole_use

if TYPE_CHECKING:
    from steersman.evals.curves import Curve, Probe

Files = list[Path] | None
_SHOWN_CHARACTERS = 160


def curves(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe that steers.")],
    multipliers: Annotated[str, typer.Option(help="Factors on its strengths; 0 is the plain model.")] = "-2,-1,0,1,2",
    choices: Annotated[Files, typer.Option(help="Multiple-choice questions (JSON, JSONL); may be repeated.")] = None,
    ab: Annotated[Files, typer.Option("--ab", help="A/B questions as CAA has them; may be repeated.")] = None,
    ab_by: Annotated[str, typer.Option(help="What stands for an A/B answer: its letter or its text.")] = "letter",
    statements: Annotated[Files, typer.Option(help="Yes/no statements of a persona; may be repeated.")] = None,
    harmful: Annotated[Files, typer.Option(help="Harmful requests; may be repeated.")] = None,
    harmless: Annotated[Files, typer.Option(help="Requests that should not be refused; may be repeated.")] = None,
    shots: Annotated[str, typer.Option(help="Faked turns before a harmful request, such as 0,8,32.")] = "0",
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many items of each file, drawn by the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws items and faked turns.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer to a request.")] = 40,
    by_confidence: Annotated[
        bool, typer.Option("--by-confidence", help="Weigh statements by their file's label_confidence.")
    ] = False,
    show_answers: Annotated[
        bool, typer.Option("--show-answers", help="Keep and print answers to requests. They may be harmful.")
    ] = False,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for JSON, CSV and charts; a run goes on from it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the results in that folder.")] = False,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a recipe does and what it costs, from its opposite to twice its strength."""
    from steersman.engine.engine import Engine
    from steersman.evals.ab import AnsweredBy
    from steersman.evals.curve_files import PointFolder, curve_facts, save_curves
    from steersman.evals.curves import measure_curves, parse_multipliers
    from steersman.evals.probes import ab_probe, choices_probe, refusal_probes, statements_probe
    from steersman.steering.recipe_file import load_recipe

    with usage("--multipliers"):
        wanted = parse_multipliers(multipliers)
    turns = _whole_numbers(shots)
    check_choice("--ab-by", ab_by, get_args(AnsweredBy))
    if out_folder is not None and (out_folder / "curves.json").exists() and not force:
        raise RecipeError(f"{out_folder} holds results; choose another folder, or replace them with --force")
    probes: list[Probe] = [choices_probe(path, limit, seed) for path in choices or ()]
    probes += [ab_probe(path, limit, seed, by=cast("AnsweredBy", ab_by)) for path in ab or ()]
    probes += [statements_probe(path, limit, seed, by_confidence=by_confidence) for path in statements or ()]
    asking: Any = {"max_tokens": max_tokens, "keep_answers": show_answers}
    for path in harmful or ():
        probes += refusal_probes(path, limit, seed, shots=turns, **asking)
    for path in harmless or ():
        probes += refusal_probes(path, limit, seed, side="harmless", **asking)
    if not probes:
        raise typer.BadParameter("give at least one file: --choices, --ab, --statements, --harmful or --harmless")
    steering = load_recipe(recipe)
    language_model = load(model, device, dtype)
    engine = Engine(language_model, profile=profile(language_model))
    if out_folder is not None:
        context.with_resource(sole_use(out_folder))
    points = PointFolder(out_folder / "points", language_model.ref, steering) if out_folder else None
    with counting() as report:
        found = measure_curves(engine, steering, probes, wanted, points=points, report=report)
    about = {
        "model": asdict(language_model.ref),
        "recipe": {"name": steering.name, "method": steering.method, "file": recipe.name},
        "multipliers": list(wanted),
        "seed": seed,
        "limit": limit,
    }
    paths = save_curves(found, out_folder, about) if out_folder else []
    if as_json:
        print_json({**about, "curves": [curve_facts(curve) for curve in found], "files": [str(p) for p in paths]})
        return
    _print(found)
    for path in paths:
        print(path)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise typer.BadParameter("give whole numbers between commas, such as 0,8,32", param_hint="--shots") from error


def _print(found: Sequence[Curve]) -> None:
    """A row a point, and below each curve how it goes and what is missing."""
    from rich.table import Table
    from rich.text import Text

    for curve in found:
        table = Table(title=Text(f"{curve.name}: {curve.measures}"), title_justify="left", title_style="bold")
        for heading in ("multiplier", "mean", "95 % interval", "scored"):
            table.add_column(heading, justify="right")
        for point in curve.points:
            value = point.value
            known = value.low is not None and value.high is not None
            table.add_row(
                f"{point.multiplier:g}",
                "-" if value.mean is None else f"{value.mean:.3f}",
                f"{value.low:.3f} to {value.high:.3f}" if known else "-",
                f"{value.n} of {value.total}",
            )
        out().print(table)
        _print_rest(curve)


def _print_rest(curve: Curve) -> None:
    trend, change = curve.trend, curve.trend.change
    if trend.steps and change.mean is not None:
        way = "rises at every step" if trend.rises else "falls at every step" if trend.falls else "goes up and down"
        if trend.rises is None:
            way = "has gaps in between"
        ends = "no interval"
        if change.low is not None and change.high is not None:
            ends = f"{change.low:+.3f} to {change.high:+.3f}"
        print(f"{way}; from lowest to highest {change.mean:+.3f} ({ends})")
    if curve.duplicates:
        print(f"{curve.duplicates} repeated items were dropped")
    for point in curve.points:
        for reason, count in point.missing.items():
            print(f"at {point.multiplier:g}, {count} without a score: {reason}")
        for answer in point.answers or ():
            if answer is not None:
                print(f"at {point.multiplier:g}: {' '.join(answer.split())[:_SHOWN_CHARACTERS]}")
    print()
