"""`steersman export`: write a recipe as a control vector for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    load,
    print_json,
    profile,
    refuse_overwrite,
)


def export(
    recipe: Annotated[Path, typer.Argument(help="The recipe to export; additive edits only.")],
    gguf: Annotated[Path | None, typer.Option(help="Write a GGUF control vector, as llama.cpp reads it.")] = None,
    safetensors: Annotated[Path | None, typer.Option(help="Write one tensor per layer as safetensors.")] = None,
    strength: Annotated[float, typer.Option(help="Factor on the recipe's strengths.")] = 1.0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files if they exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a recipe as a GGUF control vector or as safetensors."""
    from steersman.models.blocks import text_config
    from steersman.steering.export import to_gguf, to_safetensors
    from steersman.steering.recipe_file import load_recipe

    targets = [path for path in (gguf, safetensors) if path is not None]
    if not targets:
        raise typer.BadParameter("say where to: --gguf FILE, --safetensors FILE, or both")
    for path in targets:
        refuse_overwrite(path, force)
    loaded = load_recipe(recipe)
    if strength != 1.0:
        loaded = strength * loaded
    language_model = load(model, device, dtype)
    loaded.check_fits(language_model)
    norms = profile(language_model)
    if gguf is not None:
        hint = str(text_config(language_model.hf).model_type)
        to_gguf(loaded, norms, language_model.n_layers, gguf, hint)
    if safetensors is not None:
        to_safetensors(loaded, norms, safetensors)
    if as_json:
        print_json({"recipe": str(recipe), "written": [str(path) for path in targets]})
    else:
        for path in targets:
            print(f"wrote {path}")
