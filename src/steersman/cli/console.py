"""What commands share: the options for a model, loading it with a progress bar, and JSON on standard output."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.errors import DataError, RecipeError, RequestError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from steersman.models.language_model import LanguageModel
    from steersman.models.residuals import ModelProfile
    from steersman.models.sentence_encoder import SentenceEncoder
    from steersman.steering.pairs import Pair
    from steersman.steering.recipe import Recipe

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="'default' (the bundled model), a hub id, a local folder or a .gguf file.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default the best there is.")]
DtypeOption = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; by default the fastest there is.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")
]


def load(name: str, device: str | None, dtype: str | None) -> LanguageModel:
    """The model, fetched with a progress bar on a terminal when it is not here yet."""
    from steersman.models.load import load_model

    with progress(f"fetching {name}") as report, status("loading the model"):
        return load_model(name, device=device, dtype=dtype, progress=report)


def load_encoder(name: str = "default") -> SentenceEncoder:
    """The sentence encoder, fetched with a progress bar on a terminal when it is not here yet."""
    from steersman.models.sentence_encoder import load_encoder as load_it

    with progress(f"fetching the sentence encoder {name}") as report, status("loading the sentence encoder"):
        return load_it(name, progress=report)


def profile(model: LanguageModel) -> ModelProfile:
    """The model's profile, measured the first time."""
    from steersman.models.residuals import load_profile
    from steersman.settings import Settings

    with status("measuring the model's residual norms (once)"):
        return load_profile(model, Settings.from_env().cache)


def load_recipes(paths: list[Path]) -> Recipe | None:
    """The sum of the recipes, or None for no paths."""
    from steersman.steering.recipe import combine
    from steersman.steering.recipe_file import load_recipe

    return combine([load_recipe(path) for path in paths]) if paths else None


def read_pairs(name: str) -> list[Pair]:
    """Pairs of a file, or of a shipped set by its name."""
    from steersman.files import is_there
    from steersman.steering.pairs import load_named, load_pairs

    # A bare word that is no file means a shipped set; a misspelt one is told which there are.
    is_named = not is_there(Path(name)) and Path(name).name == name and "." not in name
    return load_named(name) if is_named else load_pairs(Path(name))


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    narrow = "utf" not in (sys.stdout.encoding or "").lower()
    print(json.dumps(value, ensure_ascii=narrow, indent=2))


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that an option does not know, as wrong usage.

    Raises:
        BadParameter: with the words there are.
    """
    if value not in known:
        said = f"use {', '.join(known[:-1])} or {known[-1]}{did_you_mean(value, known)}"
        raise typer.BadParameter(said, param_hint=option)


@contextlib.contextmanager
def usage(option: str) -> Iterator[None]:
    """Say what is wrong with an option's value as wrong usage, in the words of the part that refused it.

    Raises:
        BadParameter: in place of a `DataError` or `RequestError`.
    """
    try:
        yield
    except (DataError, RequestError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def refuse_overwrite(path: Path, force: bool) -> None:
    """Refuse to replace a file that the user did not ask to replace.

    Raises:
        RecipeError: it exists and `force` is not given.
    """
    if path.exists() and not force:
        raise RecipeError(f"{path} exists; choose another name, or replace it with --force")


def out() -> Console:
    """Standard output, for people."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error that appears with the first report; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    task = None

    def report(done: int, total: int | None) -> None:
        nonlocal task
        if task is None:
            bar.start()
            task = bar.add_task(title, total=total)
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        bar.stop()


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """A note on standard error while something takes a moment; silent where that is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[2K{text} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if sys.stderr.isatty():
            print("\r\033[2K", end="", file=sys.stderr, flush=True)
