"""`steersman sae`: import, train, measure and index sparse autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from steersman.cli.console import DeviceOption, DtypeOption, JsonOption, ModelOption, load, out, print_json
from steersman.cli.progress import Report, counting

if TYPE_CHECKING:
    from steersman.models.language_model import LanguageModel, Message
    from steersman.sae.config import SaeConfig
    from steersman.sae.file import StoreDtype
    from steersman.sae.on_policy import Answer
    from steersman.sae.train import AnyProgress, Quality

app = typer.Typer(help="Import, train, measure and index sparse autoencoders.", no_args_is_help=True)

TextOption = Annotated[
    list[Path], typer.Option("--text", help=".jsonl, .jsonl.gz, .txt or .txt.gz; may be repeated.", show_default=False)
]
MixOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=SHARE of the characters, by kind, source or file name; may be repeated. By default all, as it comes."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of every random choice.")]
SaeArgument = Annotated[
    str, typer.Argument(metavar="SAE", help="'default' (shipped), a name in the library, or a folder.")
]
StoreOption = Annotated[str, typer.Option(help="float32, bfloat16 or float16, for the two matrices on disk.")]


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

    _check_store(store_dtype)
    chosen = name or "-".join(filter(None, (Path(source).name, (sae_id or "").replace("/", "-"))))
    folder = _new_folder(chosen, force)
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
    _say({"sae": chosen, "folder": str(folder), **_facts(sae.config)}, as_json)


@app.command()
def train(
    text: TextOption,
    name: Annotated[str, typer.Option("--out", "-o", help="Name in the library, or a folder.")],
    layer: Annotated[int, typer.Option("--layer", "-l", help="Decoder block whose output is read, from 0.")] = 9,
    latents: Annotated[int, typer.Option(help="Number of latents.")] = 8192,
    k: Annotated[int, typer.Option("-k", "--k", help="Latents that fire per token.")] = 40,
    tokens: Annotated[int, typer.Option(help="Tokens to train on.")] = 10_000_000,
    collect: Annotated[
        int | None, typer.Option(help="Different tokens to collect; by default as many as are trained on.")
    ] = None,
    on_policy: Annotated[
        int, typer.Option(help="Also let the model write so many tokens of answers, and train on them.")
    ] = 0,
    mix: MixOption = None,
    architecture: Annotated[str, typer.Option(help="batchtopk or topk.")] = "batchtopk",
    learning_rate: Annotated[float, typer.Option(help="Of Adam, at its height.")] = 4e-4,
    held_out: Annotated[float, typer.Option(help="Share of the rows that is kept for measuring.")] = 0.01,
    store_dtype: StoreOption = "float32",
    seed: SeedOption = 0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an SAE on texts: collect activations, train, measure. The same command goes on where an interrupt left it."""
    from steersman.sae.activations import CollectSettings
    from steersman.sae.corpus import open_corpus
    from steersman.sae.file import save_sae
    from steersman.sae.on_policy import OnPolicySettings
    from steersman.sae.record import record_of, save_record
    from steersman.sae.train import train_sae
    from steersman.sae.trainer import TrainSettings

    _check_store(store_dtype)
    settings = TrainSettings(
        architecture=cast("Any", architecture),
        n_latents=latents,
        k=k,
        tokens=tokens,
        learning_rate=learning_rate,
        seed=seed,
    )
    folder = _place(name)
    corpus = open_corpus(text, mix=_mix(mix), seed=seed, held_out=held_out)
    language_model = load(model, device, dtype)
    collecting = CollectSettings(layer=layer, tokens=collect or tokens)
    with counting() as report:
        trained = train_sae(
            language_model,
            corpus,
            folder / "training",
            collecting=collecting,
            settings=settings,
            on_policy=(OnPolicySettings(tokens=on_policy), answering(language_model, seed)) if on_policy else None,
            store_dtype=cast("StoreDtype", store_dtype),
            progress=_reporter(report),
        )
    save_sae(trained.sae, folder, store_dtype=cast("StoreDtype", store_dtype))
    save_record(record_of(trained, corpus, collecting, settings, store_dtype), folder)
    facts = {"sae": name, "folder": str(folder), **_facts(trained.sae.config)}
    _say({**facts, **(quality_facts(trained.quality) if trained.quality else {})}, as_json)
    if not as_json:
        print(f"activations and checkpoint are in {folder / 'training'}; remove that folder when you need them no more")


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

    loaded = _find(sae).load()
    corpus = open_corpus(text, mix=_mix(mix), seed=seed, held_out=held_out)
    language_model = load(model, device, dtype)
    loaded.check_fits(language_model.ref)
    on_held_out = held_out > 0
    with counting() as report, tempfile.TemporaryDirectory() as folder:
        settings = CollectSettings(layer=loaded.config.layer, tokens=tokens)
        store = collect_activations(
            language_model, corpus, Path(folder), settings, held_out=on_held_out, progress=_reporter(report)
        )
        quality = measure_sae(
            language_model, loaded.to(language_model.device), corpus, store, tokens // 5, held_out=on_held_out
        )
    _say({"sae": sae, **quality_facts(quality)}, as_json)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """The SAEs that are here: the shipped one, and those in the library."""
    from steersman.sae.library import list_saes
    from steersman.settings import Settings

    rows = [
        {"sae": entry.name, **_facts(entry.config), "index": entry.index_folder.is_dir(), "folder": str(entry.folder)}
        for entry in list_saes(Settings.from_env().cache)
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        size = f"{row['latents']:,} latents, layer {row['layer']}, d_model {row['d_model']}, {row['architecture']}"
        out().print(f"{row['sae']:<24} {size}{', indexed' if row['index'] else ''}", markup=False)


def answering(model: LanguageModel, seed: int) -> Answer:
    """A function that lets the model answer chats as its users would see it: sampled, in batches."""
    from steersman.engine.engine import Engine, EngineLimits
    from steersman.engine.request import Request, Sampling

    engine = Engine(model, EngineLimits(slots=32, kv_tokens=32 * 512))
    sampling = Sampling(temperature=0.8, top_p=0.95, max_tokens=128, seed=seed)

    def answer(chats: Sequence[Sequence[Message]]) -> list[str]:
        return [result.text for result in engine.generate([Request(prompt=chat, sampling=sampling) for chat in chats])]

    return answer


def quality_facts(quality: Quality) -> dict[str, Any]:
    """What was measured, flat, for JSON and for people."""
    return {
        "explained_variance": quality.reconstruction.explained_variance,
        "cross_entropy_recovered": quality.prediction.recovered,
        "l0": quality.reconstruction.l0,
        "dead_share": quality.reconstruction.dead_share,
        "tokens": quality.reconstruction.tokens,
        "cross_entropy": {**asdict(quality.prediction)},
    }


def _facts(config: SaeConfig) -> dict[str, Any]:
    return {
        "architecture": config.architecture,
        "latents": config.d_sae,
        "d_model": config.d_model,
        "layer": config.layer,
        "k": config.k,
        "model": config.model.id if config.model else None,
    }


def _reporter(report: Report) -> Any:
    """One reporter for the three kinds of progress that training has."""
    from steersman.sae.activations import CollectProgress
    from steersman.sae.train import TrainProgress

    def show(now: AnyProgress) -> None:
        if isinstance(now, CollectProgress):
            report("collecting activations", now.tokens, now.total_tokens, f"{now.tokens_per_s:,.0f} tokens/s")
        elif isinstance(now, TrainProgress):
            f = now.point.facts
            numbers = (
                f"loss {f.loss:.3f}, explained variance {f.explained_variance:.3f}, L0 {f.l0:.0f}, dead {f.n_dead}"
            )
            report("training (steps)", now.point.step, now.steps, f"{numbers}, {now.tokens_per_s:,.0f} tokens/s")
        else:
            report("writing answers (tokens)", now.tokens, now.total_tokens, f"{now.chats:,} chats")

    return show


def _mix(entries: list[str] | None) -> dict[str, float] | None:
    if not entries:
        return None
    mix = {}
    for entry in entries:
        name, _, share = entry.rpartition("=")
        try:
            mix[name] = float(share)
        except ValueError:
            name = ""
        if not name:
            raise typer.BadParameter(f"{entry!r} is not NAME=SHARE, such as chat=0.5", param_hint="--mix")
    return mix


def _check_store(store_dtype: str) -> None:
    known = ("float32", "bfloat16", "float16")
    if store_dtype not in known:
        raise typer.BadParameter(f"use {', '.join(known)}", param_hint="--store-dtype")


def _find(name: str) -> Any:
    from steersman.sae.library import find_sae
    from steersman.settings import Settings

    return find_sae(name, Settings.from_env().cache)


def _place(name: str) -> Path:
    from steersman.sae.library import place_for
    from steersman.settings import Settings

    return place_for(name, Settings.from_env().cache)


def _new_folder(name: str, force: bool) -> Path:
    from steersman.errors import SaeError
    from steersman.sae.file import CONFIG_FILE

    folder = _place(name)
    if (folder / CONFIG_FILE).exists() and not force:
        raise SaeError(f"there is an SAE in {folder}; choose another --name, or replace it with --force")
    return folder


def _say(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if not isinstance(value, dict):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else value
            out().print(f"{key.replace('_', ' '):<24} {shown}", markup=False)
