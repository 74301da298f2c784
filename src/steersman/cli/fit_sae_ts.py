"""`steersman fit sae-ts`: aim a vector at features with a measured effect map. Needs no model and no examples."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from steersman.cli.console import JsonOption, check_choice, print_json, refuse_overwrite
from steersman.cli.effects import MapOption, SaeOption, explains, label_of, labels_of, load_map
from steersman.cli.fit import ForceOption, OutOption

_VARIANTS = ("map", "pinv", "rotation")


def sae_ts(
    out: OutOption,
    feature: Annotated[
        list[str],
        typer.Option(
            "--feature", "-f", metavar="ID[=WEIGHT]", help="Feature to raise (weight below 0: lower); may be repeated."
        ),
    ],
    effect_map: MapOption = None,
    sae: SaeOption = "default",
    name: Annotated[str | None, typer.Option(help="Name of the recipe; by default that of the file.")] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="In mean residual norms; by default as effects were measured.", show_default=False),
    ] = None,
    variant: Annotated[str, typer.Option(help="map (the paper's), pinv or rotation.")] = "map",
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction/--no-bias-correction", help="Take off what every vector does.")
    ] = True,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """SAE-targeted steering: the vector that moves some features and little else."""
    from steersman.steering.methods.sae_ts import Variant, fit
    from steersman.steering.recipe_file import save_recipe, tensor_path

    check_choice("--variant", variant, _VARIANTS)
    for path in (out, tensor_path(out)):
        refuse_overwrite(path, force)
    weights = feature_weights(feature)
    stored, entry = load_map(effect_map, sae)
    recipe = fit(
        stored,
        weights,
        name=name or out.stem,
        strength=strength,
        variant=cast(Variant, variant),
        bias_correction=bias_correction,
        decoder=entry.load().W_dec if variant == "rotation" else None,
    )
    save_recipe(recipe, out)
    if as_json:
        facts = {"recipe": str(out), "name": recipe.name, "method": recipe.method, "strength": recipe.edits[0].strength}
        explained = {"map_r_squared": stored.facts.r_squared.mean}
        print_json(facts | {"layer": recipe.edits[0].layer, "data": recipe.data} | explained)
        return
    index = labels_of(entry, stored)
    aims = ", ".join(
        f"{weight:+g} × {each} ({label_of(index, each) or 'no label'})" for each, weight in weights.items()
    )
    print(f"wrote {out}: {aims} at layer {recipe.edits[0].layer}, strength {recipe.edits[0].strength:.2f}")
    print(explains(stored))
    print(f"side effects: steersman effects predict {out}")


def feature_weights(entries: list[str]) -> dict[int, float]:
    """What `--feature ID[=WEIGHT]` options say; a feature that is named twice counts once, with both weights."""
    weights: dict[int, float] = {}
    for entry in entries:
        number, _, weight = entry.partition("=")
        try:
            feature, factor = int(number), float(weight) if weight else 1.0
        except ValueError as error:
            raise typer.BadParameter(
                f"{entry!r} is not ID or ID=WEIGHT, such as 4230=-0.5", param_hint="--feature"
            ) from error
        weights[feature] = weights.get(feature, 0.0) + factor
    return weights
