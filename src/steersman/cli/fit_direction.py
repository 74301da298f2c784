"""`steersman fit direction`: find the direction that two kinds of prompts differ in, to take it out or to add it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    check_choice,
    load,
    print_json,
    profile,
    refuse_overwrite,
    status,
)
from steersman.cli.fit import ForceOption, LayerOption, NameOption, OutOption

if TYPE_CHECKING:
    from steersman.steering.recipe import Recipe

TriggerOption = Annotated[
    Path,
    typer.Option("--trigger", metavar="FILE", help="Prompts of the kind that is looked for (.txt, .jsonl, .json)."),
]
OtherOption = Annotated[
    Path, typer.Option("--other", metavar="FILE", help="Prompts of other kinds, as like them in form as can be.")
]
SeedOption = Annotated[int, typer.Option(help="Of the split into parts.")]


def direction(
    trigger: TriggerOption,
    other: OtherOption,
    out: OutOption,
    layer: LayerOption = None,
    name: NameOption = None,
    use: Annotated[str, typer.Option(help="ablate (take the direction out) or add (bring it about).")] = "ablate",
    choose: Annotated[
        str, typer.Option(help="openings (how answers begin changes) or separation (how far prompts lie apart).")
    ] = "openings",
    opening: Annotated[
        list[str] | None, typer.Option(help="How an answer begins that shows the behaviour; by default refusals.")
    ] = None,
    position: Annotated[
        list[int] | None,
        typer.Option(help="Token of the prompt to read, from its end: -1 (the last); may be repeated."),
    ] = None,
    most_divergence: Annotated[
        float,
        typer.Option(help="With openings: the most that ablating may change other answers' first word (KL, nats)."),
    ] = 0.1,
    seed: SeedOption = 0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """The direction between two kinds of prompts, such as that of refusal; ablated at every layer, or added at its own."""
    from steersman.steering.methods import direction as method
    from steersman.steering.methods.prompt_sets import load_prompts
    from steersman.steering.recipe_file import save_recipe, tensor_path

    for path in (out, tensor_path(out)):
        refuse_overwrite(path, force)
    check_choice("--use", use, ("ablate", "add"))
    check_choice("--choose", choose, ("openings", "separation"))
    search = method.Search(
        layers=tuple(layer) if layer else None,
        positions=tuple(position or (-1,)),
        choose=cast("Literal['openings', 'separation']", choose),
        openings=tuple(opening or method.REFUSALS),
        use=cast("Literal['ablate', 'add']", use),
        most_divergence=most_divergence,
        seed=seed,
    )
    kinds = load_prompts(trigger), load_prompts(other)
    language_model = load(model, device, dtype)
    norms = profile(language_model)
    with status("trying directions"):
        recipe = method.fit(language_model, *kinds, profile=norms, name=name or trigger.stem, search=search)
    save_recipe(recipe, out)
    if as_json:
        print_json({"recipe": str(out), "name": recipe.name, "method": recipe.method, "data": recipe.data})
    else:
        _say(recipe, out, use)


def _say(recipe: Recipe, out: Path, use: str) -> None:
    data: Any = recipe.data
    test = data["test"]
    key = "ablated_minus_plain_on_trigger" if use == "ablate" else "added_minus_plain_on_other"
    change = test[key]
    done = "taken out at" if use == "ablate" else "added at"
    print(f"wrote {out}: the direction of layer {data['layer']}, {done} {len(recipe.edits)} layer(s)")
    print(
        f"on {change['n']} held-out prompts the log-odds of an opening change by {change['mean']:+.2f} "
        f"[{change['low']:+.2f}, {change['high']:+.2f}]; the kinds lie {test['separation']:.1f} standard deviations apart"
    )
