"""`steersman sae`: import, measure and list sparse autoencoders; training and indexing stand in `sae_train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from steersman.cli import sae_train
from steersman.cli.console import DeviceOption, DtypeOption, JsonOption, ModelOption, load, out, print_json
from steersman.cli.progress import counting
from steersman.cli.sae_common import (
    MixOption,
    SaeArgument,
    SeedOption,
    StoreOption,
    TextOption,
    check_store,
    config_facts,
    find,
    new_folder,
    quality_facts,
    read_mix,
    reporter,
    say,
)

if TYPE_CHECKING:
    from steersman.sae.file import StoreDtype

app = typer.Typer(help="Import, train, measure and index sparse autoencoders.", no_args_is_help=True)
app.command("train")(sae_train.train)
app.command("index")(sae_train.index)


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="A local folder or file, a hub repo (owner/name), or a release of SAELens.")
    ],
    sae_id: Annotated[
        str | None, typer.Argument(help="The id in the release, or the path in the folder or repo.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name in the library, or a folder; by default from the source.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="By default told from the files.")] = None,  # noqa: A002
    layer: Annotated[int | None, typer.Option(help="Where the files do not say it, counted from 0.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Bind it to this model, and check that it fits.")
    ] = None,
    store_dtype: StoreOption = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace an SAE of that name.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a published SAE once into steersman's own form."""
    from steersman.errors import SaeError
    from steersman.sae.file import save_sae
    from steersman.sae.importers.find import import_sae

    check_store(store_dtype)
    chosen = name or "-".join(filter(None, (Path(source).name, (sae_id or "").replace("/", "-"))))
    folder = new_folder(chosen, force)
    sae = import_sae(source, sae_id, format=format, layer=layer)
    if model is not None:
        language_model = load(model, None, None)
        if (sae.config.d_model, sae.config.layer < language_model.n_layers) != (language_model.d_model, True):
            raise SaeError(
                f"this SAE reads layer {sae.config.layer} of {sae.config.d_model} dimensions; {model} has "
                f"{language_model.n_layers} layers of {language_model.d_model}"
            )
        sae = sae.for_model(language_model.ref)
    save_sae(sae, folder, store_dtype=cast("StoreDtype", store_dtype))
    say({"sae": chosen, "folder": str(folder), **config_facts(sae.config)}, as_json)


@app.command()
def measure(
    sae: SaeArgument,
    text: TextOption,
    mix: MixOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens to reconstruct; a fifth of them is predicted.")] = 100_000,
    held_out: Annotated[
        float,
        typer.Option(
            help="Read only this share of the rows, the one that training with the same share kept out; 0 reads all."
        ),
    ] = 0.0,
    seed: SeedOption = 0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure an SAE on texts: explained variance, L0, dead latents, cross-entropy recovered."""
    import tempfile

    from steersman.sae.activations import CollectSettings
    from steersman.sae.activations import collect as collect_activations
    from steersman.sae.corpus import open_corpus
    from steersman.sae.train import measure as measure_sae

    loaded = find(sae).load()
    corpus = open_corpus(text, mix=read_mix(mix), seed=seed, held_out=held_out)
    language_model = load(model, device, dtype)
    loaded.check_fits(language_model.ref)
    on_held_out = held_out > 0
    with counting() as report, tempfile.TemporaryDirectory() as folder:
        settings = CollectSettings(layer=loaded.config.layer, tokens=tokens)
        store = collect_activations(
            language_model, corpus, Path(folder), settings, held_out=on_held_out, progress=reporter(report)
        )
        quality = measure_sae(
            language_model, loaded.to(language_model.device), corpus, store, tokens // 5, held_out=on_held_out
        )
    say({"sae": sae, **quality_facts(quality)}, as_json)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """The SAEs that are here: the shipped one, and those in the library."""
    from steersman.sae.library import list_saes
    from steersman.settings import Settings

    rows = [
        {
            "sae": entry.name,
            **config_facts(entry.config),
            "index": entry.index_folder.is_dir(),
            "folder": str(entry.folder),
        }
        for entry in list_saes(Settings.from_env().cache)
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        size = f"{row['latents']:,} latents, layer {row['layer']}, d_model {row['d_model']}, {row['architecture']}"
        out().print(f"{row['sae']:<24} {size}{', indexed' if row['index'] else ''}", markup=False)
