"""`steersman fit`: fit a recipe from examples and write it to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

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
    read_pairs,
    refuse_overwrite,
)

if TYPE_CHECKING:
    from steersman.models.language_model import LanguageModel
    from steersman.models.residuals import ModelProfile
    from steersman.steering.contrast import Read
    from steersman.steering.methods.lat import Variant
    from steersman.steering.pairs import Pair
    from steersman.steering.recipe import Recipe

    Fitting = Callable[[LanguageModel, list[Pair], ModelProfile, list[int], str], Recipe]

app = typer.Typer(help="Fit a recipe from examples of a behaviour.", no_args_is_help=True)

_READS = ("answer", "last", "all")
_VARIANTS = ("pca_center", "pca_diff")

PairsArgument = Annotated[
    str,
    typer.Argument(
        metavar="PAIRS", help="JSONL file with a positive and a negative on each line, or a shipped set's name."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Where to write the recipe (JSON; tensors go beside it).")]
LayerOption = Annotated[
    list[int] | None,
    typer.Option(
        "--layer",
        "-l",
        help="Decoder block to edit, from 0; may be repeated.",
    ),
]
NameOption = Annotated[str | None, typer.Option(help="Name of the recipe; by default that of the pairs.")]
ReadOption = Annotated[str, typer.Option(help="Which tokens are compared: answer, last or all.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the recipe if it exists.")]


@app.command()
def caa(
    pairs: PairsArgument,
    out: OutOption,
    layer: LayerOption = None,
    name: NameOption = None,
    read: ReadOption = "answer",
    strength: Annotated[float, typer.Option(help="Multiple of the fitted difference to store.")] = 1.0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Contrastive activation addition: the mean difference between positives and negatives."""
    from steersman.steering.methods import caa as method

    def fitting(
        language_model: LanguageModel, examples: list[Pair], norms: ModelProfile, layers: list[int], title: str
    ) -> Recipe:
        return method.fit(language_model, examples, profile=norms, layers=layers, name=title, read=cast("Read", read))

    check_choice("--read", read, _READS)
    _fit(fitting, pairs, out, layer, name, strength, (model, device, dtype), force, as_json)


@app.command()
def lat(
    pairs: PairsArgument,
    out: OutOption,
    layer: LayerOption = None,
    name: NameOption = None,
    read: ReadOption = "answer",
    variant: Annotated[
        str, typer.Option(help="pca_center (keeps the mean difference) or pca_diff (repeng's).")
    ] = "pca_center",
    strength: Annotated[float, typer.Option(help="Multiple of the fitted difference to store.")] = 1.0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Linear artificial tomography: the first principal component of the differences."""
    from steersman.steering.methods import lat as method

    def fitting(
        language_model: LanguageModel, examples: list[Pair], norms: ModelProfile, layers: list[int], title: str
    ) -> Recipe:
        return method.fit(
            language_model,
            examples,
            profile=norms,
            layers=layers,
            name=title,
            read=cast("Read", read),
            variant=cast("Variant", variant),
        )

    check_choice("--read", read, _READS)
    check_choice("--variant", variant, _VARIANTS)
    _fit(fitting, pairs, out, layer, name, strength, (model, device, dtype), force, as_json)


def default_layer(n_layers: int) -> int:
    """Three tenths of the way up: block 9 of 30 steered the bundled model best."""
    return min(round(0.3 * n_layers), n_layers - 1)


def _fit(
    fitting: Fitting,
    pairs: str,
    out: Path,
    layers: list[int] | None,
    name: str | None,
    strength: float,
    model_options: tuple[str, str | None, str | None],
    force: bool,
    as_json: bool,
) -> None:
    from steersman.steering.recipe_file import save_recipe, tensor_path

    for path in (out, tensor_path(out)):
        refuse_overwrite(path, force)
    examples = read_pairs(pairs)
    model = load(*model_options)
    chosen = layers or [default_layer(model.n_layers)]
    recipe = fitting(model, examples, profile(model), chosen, name or Path(pairs).stem)
    if strength != 1.0:
        recipe = strength * recipe
    save_recipe(recipe, out)
    if as_json:
        edits = [{"layer": edit.layer, "strength": edit.strength} for edit in recipe.edits]
        print_json(
            {"recipe": str(out), "name": recipe.name, "method": recipe.method, "edits": edits, "data": recipe.data}
        )
    else:
        what = ", ".join(f"layer {edit.layer} (strength {edit.strength:.2f})" for edit in recipe.edits)
        print(f"wrote {out}: {recipe.method} from {recipe.data['pairs']} pairs at {what}")
        print(f"try: steersman generate --recipe {out} --strength 2 --compare --prompt 'What is the internet?'")
