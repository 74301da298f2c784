"""`steersman fit optimised`: train one vector so that the model prefers the positive answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    status,
)
from steersman.cli.fit import ForceOption, LayerOption, NameOption, OutOption, PairsArgument, default_layer

_PREFERENCES = ("reps", "bipo")


def optimised(
    pairs: PairsArgument,
    out: OutOption,
    layer: LayerOption = None,
    name: NameOption = None,
    preference: Annotated[str, typer.Option(help="What is trained for: reps or bipo.")] = "reps",
    steps: Annotated[int, typer.Option(min=1, help="Training steps, at most.")] = 40,
    max_norm: Annotated[float, typer.Option(help="Longest vector allowed, in mean residual norms.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one vector by preference; of several layers, each alone, the best on validation pairs is kept."""
    from steersman.steering.methods import optimised as method
    from steersman.steering.recipe_file import save_recipe, tensor_path

    check_choice("--preference", preference, _PREFERENCES)
    for path in (out, tensor_path(out)):
        refuse_overwrite(path, force)
    training = method.Training(preference=preference, steps=steps, max_norm=max_norm, seed=seed)
    examples = read_pairs(pairs)
    language_model = load(model, device, dtype)
    norms, layers = profile(language_model), layer or [default_layer(language_model.n_layers)]
    with status(f"training at {len(layers)} layer(s), {steps} steps at most"):
        recipe = method.fit(
            language_model, examples, profile=norms, layers=layers, name=name or Path(pairs).stem, training=training
        )
    save_recipe(recipe, out)
    if as_json:
        edits = [{"layer": edit.layer, "strength": edit.strength} for edit in recipe.edits]
        facts = {"recipe": str(out), "name": recipe.name, "method": recipe.method, "edits": edits, "data": recipe.data}
        print_json(facts)
        return
    (edit,) = recipe.edits
    history: Any = recipe.data["history"]
    steps_seen = history[str(edit.layer)]
    best = min(steps_seen, key=lambda entry: entry["loss"])
    print(f"wrote {out}: a vector at layer {edit.layer} (strength {edit.strength:.2f}) from step {best['step']}")
    print(
        f"validation loss {steps_seen[0]['loss']:.3f} at the beginning, {best['loss']:.3f} there; "
        f"{best['turned']:.0%} of {recipe.data['validation_pairs']} validation pairs turned to the positive answer"
    )
    print(f"try: steersman generate --recipe {out} --compare --prompt 'What is the internet?'")
