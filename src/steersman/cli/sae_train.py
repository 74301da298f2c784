"""`steersman sae train` and `steersman sae index`: the two long ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    load,
    load_encoder,
)
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
    place,
    quality_facts,
    read_mix,
    reporter,
    say,
)
from steersman.files import sole_use

if TYPE_CHECKING:
    from steersman.models.language_model import LanguageModel, Message
    from steersman.sae.file import StoreDtype
    from steersman.sae.on_policy import Answer


def train(
    context: typer.Context,
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

    check_store(store_dtype)
    settings = TrainSettings(
        architecture=cast("Any", architecture),
        n_latents=latents,
        k=k,
        tokens=tokens,
        learning_rate=learning_rate,
        seed=seed,
    )
    folder = place(name)
    corpus = open_corpus(text, mix=read_mix(mix), seed=seed, held_out=held_out)
    language_model = load(model, device, dtype)
    collecting = CollectSettings(layer=layer, tokens=collect or tokens)
    context.with_resource(sole_use(folder))
    with counting() as report:
        trained = train_sae(
            language_model,
            corpus,
            folder / "training",
            collecting=collecting,
            settings=settings,
            on_policy=(OnPolicySettings(tokens=on_policy), answering(language_model, seed)) if on_policy else None,
            store_dtype=cast("StoreDtype", store_dtype),
            progress=reporter(report),
        )
    save_sae(trained.sae, folder, store_dtype=cast("StoreDtype", store_dtype))
    save_record(record_of(trained, corpus, collecting, settings, store_dtype), folder)
    facts = {"sae": name, "folder": str(folder), **config_facts(trained.sae.config)}
    say({**facts, **(quality_facts(trained.quality) if trained.quality else {})}, as_json)
    if not as_json:
        print(f"activations and checkpoint are in {folder / 'training'}; remove that folder when you need them no more")


def index(
    context: typer.Context,
    sae: SaeArgument,
    text: TextOption,
    mix: MixOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read.")] = 2_000_000,
    name: Annotated[
        str | None, typer.Option(help="What the index calls the SAE; by default its name or folder.")
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="contexts: rules, offline; llm: the endpoint that STEERSMAN_LLM_URL names writes and judges."
        ),
    ] = "contexts",
    scored: Annotated[int | None, typer.Option(help="Labels to score; by default all.")] = None,
    encoder: Annotated[str, typer.Option(help="Sentence encoder: 'default', a hub id or a folder.")] = "default",
    seed: SeedOption = 0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Index an SAE's features: contexts, tokens promoted, neighbours, labels with scores, search. Goes on after an interrupt."""
    from steersman.models.endpoint import Endpoint
    from steersman.sae.activations import CollectSettings
    from steersman.sae.activations import collect as collect_activations
    from steersman.sae.corpus import open_corpus
    from steersman.sae.index.build import BuildSettings
    from steersman.sae.index.file import save_index
    from steersman.sae.index.make import IndexSettings, make_index
    from steersman.settings import Settings

    if labels not in ("contexts", "llm"):
        raise typer.BadParameter("use contexts or llm", param_hint="--labels")
    ask = Endpoint.from_settings(Settings.from_env()) if labels == "llm" else None
    entry = find(sae)
    loaded = entry.load()
    corpus = open_corpus(text, mix=read_mix(mix), seed=seed, held_out=0.0)
    language_model = load(model, device, dtype)
    loaded.check_fits(language_model.ref)
    sentence_encoder = load_encoder(encoder)
    work = entry.folder / "indexing"
    context.with_resource(sole_use(work))
    with counting() as report:
        collecting = CollectSettings(layer=loaded.config.layer, tokens=tokens)
        store = collect_activations(language_model, corpus, work, collecting, progress=reporter(report))
        made = make_index(
            language_model,
            loaded.to(language_model.device),
            name or Path(sae).name,
            [store],
            sentence_encoder,
            IndexSettings(build=BuildSettings(tokens=tokens, seed=seed), scored=scored, seed=seed),
            sources={group.name: group.weight for group in corpus.groups},
            ask=ask,
            report=lambda what, done, total: report(what, done, total, ""),
        )
    save_index(made.index, entry.index_folder)
    d = made.detection
    facts = {
        "sae": sae,
        "folder": str(entry.index_folder),
        "tokens": made.index.facts.tokens,
        "live": len(made.index.live),
        "features": len(made.index),
        "labels_scored": d.n_scored,
        "labels_in_all": d.n_total,
        "detection_accuracy": d.mean,
        "detection_interval": [d.low, d.high],
        "detection_control": d.control,
        "share_above_0.7": d.share_good,
    }
    say(facts, as_json)
    if not as_json:
        print(f"activations are in {work}; remove that folder when you need them no more")


def answering(model: LanguageModel, seed: int) -> Answer:
    """A function that lets the model answer chats as its users would see it: sampled, in batches."""
    from steersman.engine.engine import Engine, EngineLimits
    from steersman.engine.request import Request, Sampling

    engine = Engine(model, EngineLimits(slots=32, kv_tokens=32 * 512))
    sampling = Sampling(temperature=0.8, top_p=0.95, max_tokens=128, seed=seed)

    def answer(chats: Sequence[Sequence[Message]]) -> list[str]:
        return [result.text for result in engine.generate([Request(prompt=chat, sampling=sampling) for chat in chats])]

    return answer
