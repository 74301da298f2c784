"""What the commands on SAEs share: options, names and folders, progress, and how facts are said."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.cli.console import out, print_json

if TYPE_CHECKING:
    from steersman.cli.progress import Report
    from steersman.sae.config import SaeConfig
    from steersman.sae.library import SaeEntry
    from steersman.sae.train import AnyProgress, Quality

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


def config_facts(config: SaeConfig) -> dict[str, Any]:
    """What an SAE is, flat, for JSON and for people."""
    return {
        "architecture": config.architecture,
        "latents": config.d_sae,
        "d_model": config.d_model,
        "layer": config.layer,
        "k": config.k,
        "model": config.model.id if config.model else None,
    }


def reporter(report: Report) -> Any:
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


def read_mix(entries: list[str] | None) -> dict[str, float] | None:
    """The mix that `--mix NAME=SHARE` options say; None for none."""
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


def check_store(store_dtype: str) -> None:
    """Refuse a number format that cannot be stored, before the work and not after it."""
    known = ("float32", "bfloat16", "float16")
    if store_dtype not in known:
        raise typer.BadParameter(f"use {', '.join(known)}", param_hint="--store-dtype")


def find(name: str) -> SaeEntry:
    """An SAE by name or folder."""
    from steersman.sae.library import find_sae
    from steersman.settings import Settings

    return find_sae(name, Settings.from_env().cache)


def place(name: str) -> Path:
    """Folder for a new SAE."""
    from steersman.sae.library import place_for
    from steersman.settings import Settings

    return place_for(name, Settings.from_env().cache)


def new_folder(name: str, force: bool) -> Path:
    """Folder for a new SAE, refused where one is and `force` is not given."""
    from steersman.errors import SaeError
    from steersman.sae.file import CONFIG_FILE

    folder = place(name)
    if (folder / CONFIG_FILE).exists() and not force:
        raise SaeError(f"there is an SAE in {folder}; choose another --name, or replace it with --force")
    return folder


def say(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts: one JSON object, or a line each."""
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if not isinstance(value, dict):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else value
            out().print(f"{key.replace('_', ' '):<24} {shown}", markup=False)
