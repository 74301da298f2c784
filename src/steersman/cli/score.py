"""`steersman score`: how far texts are a word, from 0 to 10, for any words; many texts in one batch."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    load,
    load_encoder,
    out,
    print_json,
    profile,
    status,
    usage,
)
from steersman.errors import DataError, did_you_mean
from steersman.files import parse_json, read_text

if TYPE_CHECKING:
    from steersman.judges.descriptor import DescriptorScore
    from steersman.judges.facts import Answered

_MAX_BYTES = 1 << 20
_KEYS = ("text", "prompt")


def score(
    text: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to score. '-': standard input, one a line.")
    ] = None,
    word: Annotated[
        list[str] | None,
        typer.Option(
            "--word", "-w", help="What the text may be, such as cheerful; a few words at most; may be repeated."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="More texts: one a line, or a .jsonl file of text and (if wanted) prompt."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What the texts answer; by default nothing in particular.")
    ] = None,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score texts from 0 to 10 for any word: 5 is the boundary between is and is not."""
    from steersman.engine.engine import Engine
    from steersman.judges.descriptor import PROMPT, DescriptorJudge, descriptor

    if not word:
        raise typer.BadParameter("name at least one, such as --word cheerful", param_hint="--word")
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("it is empty; leave it out", param_hint="--prompt")
    with usage("--word"):
        words = list(dict.fromkeys(descriptor(each) for each in word))
    items = _items(text or [], file, prompt or PROMPT)
    language_model = load(model, device, dtype)
    judge = DescriptorJudge(Engine(language_model, profile=profile(language_model)), load_encoder())
    with status(f"reading {len(items)} texts"):
        rows = judge.score(items, words)
    if as_json:
        print_json({"model": asdict(language_model.ref), "words": words, "texts": _facts(items, rows)})
    else:
        _print_table(items, words, rows)
    notes = {each.note for row in rows for each in row if each.note}
    for note in sorted(notes):
        print(f"note: of some scores, {note}", file=sys.stderr)


def _items(texts: list[str], file: Path | None, prompt: str) -> list[Answered]:
    """All texts, in order.

    Raises:
        DataError: none, an empty one, or a file that cannot be read.
    """
    from steersman.judges.facts import Answered

    items: list[Answered] = []
    for text in texts:
        lines = _lines(_stdin()) if text == "-" else [text]
        items += [Answered(prompt, line) for line in lines]
    if file is not None:
        found = read_text(file, "texts", most_bytes=_MAX_BYTES)
        if file.suffix == ".jsonl":
            items += [
                _parsed(line, number, file, prompt) for number, line in enumerate(found.split("\n"), 1) if line.strip()
            ]
        else:
            items += [Answered(prompt, line) for line in _lines(found)]
    if not items:
        raise DataError("there is no text to score; give one, or a file of them with --file")
    for number, item in enumerate(items, 1):
        if not item.answer.strip():
            raise DataError(f"text {number} is empty; leave it out")
    return items


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _stdin() -> str:
    try:
        found = sys.stdin.read(_MAX_BYTES + 1)
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is no text in {error.encoding.upper()}; convert it first") from error
    if len(found) > _MAX_BYTES:
        raise DataError("standard input holds more than a million characters; score it in parts")
    return found


def _parsed(line: str, number: int, path: Path, prompt: str) -> Answered:
    from steersman.judges.facts import Answered

    where = f"{path}, line {number}"
    found = parse_json(line, where)
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise DataError(f'{where}: write {{"text": "..."}}, with a "prompt" if there is one')
    for key, value in found.items():
        if key not in _KEYS:
            raise DataError(f"{where}: unknown key {key!r}{did_you_mean(key, _KEYS)}")
        if not isinstance(value, str):
            raise DataError(f"{where}: {key} must be a text, not {value!r}")
    return Answered(found.get("prompt", prompt), found["text"])


def _facts(items: list[Answered], rows: list[list[DescriptorScore]]) -> list[dict[str, Any]]:
    return [
        {"text": item.answer, "prompt": item.prompt, "scores": [asdict(each) for each in row]}
        for item, row in zip(items, rows, strict=True)
    ]


def _print_table(items: list[Answered], words: list[str], rows: list[list[DescriptorScore]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from steersman.cli.autosteer_view import clean

    table, screen = Table(box=box.SIMPLE), out()
    # The text gets what the numbers leave: left to itself, a long one would squeeze them out.
    width = max(20, screen.width - sum(max(4, len(word)) + 4 for word in words) - 4)
    for word in words:
        table.add_column(clean(word), justify="right", no_wrap=True, min_width=max(4, len(clean(word))))
    table.add_column("text")
    for item, row in zip(items, rows, strict=True):
        text = Text(clean(item.answer), no_wrap=True)
        text.truncate(width, overflow="ellipsis")
        table.add_row(*(f"{each.score:.1f}" for each in row), text)
    screen.print(table)
