"""Texts of a topic, read from files and cut into pieces that a model can read. Knows nothing of activations."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steersman.errors import DataError
from steersman.files import read_text, write_bytes
from steersman.models.language_model import LanguageModel
from steersman.sae.texts import read_rows

MIN_TEXTS = 2
"""Different texts of a set: one alone spans no distance, and tells nothing of chance."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text, or a part of a long one."""

    ids: tuple[int, ...]
    """Its tokens; where the tokenizer begins texts with one of its own, every piece has it."""
    text: str
    text_number: int
    """Which of the texts it belongs to, counted from 0."""


def load_texts(path: Path) -> list[str]:
    """The texts of a file, in order: `.jsonl` with `text`, `.csv` (the last column, behind one heading), `.txt` (one a line).

    Empty ones are left out.

    Raises:
        DataError: the file is missing, in no known format, not UTF-8, holds chats, or no text at all.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        rows = list(read_rows(path))
        chats = [row.line for row in rows if not isinstance(row.content, str)]
        if chats:
            raise DataError(f"{path}, line {chats[0]}: a chat; a topic needs texts, write {{'text': ...}}")
        texts = [row.content for row in rows if isinstance(row.content, str)]
    elif path.suffix in {".csv", ".txt"}:
        texts = _plain(path)
    else:
        raise DataError(f"{path} is in no known format; use .jsonl, .csv or .txt")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise DataError(f"{path} holds no text; write at least {MIN_TEXTS}, twenty or more are better")
    return texts


def pieces_of(model: LanguageModel, texts: Sequence[str], name: str, chunk_tokens: int) -> list[Piece]:
    """Each different text in pieces of at most `chunk_tokens` tokens.

    Args:
        model: whose tokens.
        texts: repeated ones count once; those of one token are left out, as the first token is never read.
        name: of the set, for messages.
        chunk_tokens: longest piece.

    Raises:
        DataError: a length that the model does not read, or fewer than two texts that can be used.
    """
    if isinstance(texts, str):
        raise DataError(f"the {name} set is one text; give a list of texts")
    if not 2 <= chunk_tokens <= model.context_tokens:
        raise DataError(
            f"chunk_tokens must lie between 2 and the {model.context_tokens} of {model.name}, not {chunk_tokens}"
        )
    pieces: list[Piece] = []
    for number, text in enumerate(dict.fromkeys(text.strip() for text in texts)):
        pieces += _cut(model, text, number, chunk_tokens) if text else []
    found = len({piece.text_number for piece in pieces})
    if found < MIN_TEXTS:
        raise DataError(
            f"the {name} set holds {found} different texts that can be read; give at least {MIN_TEXTS}, twenty or more are better"
        )
    return pieces


def _cut(model: LanguageModel, text: str, number: int, chunk_tokens: int) -> list[Piece]:
    ids = list(model.tokenizer(text, verbose=False)["input_ids"])
    if len(ids) <= chunk_tokens:
        return [Piece(tuple(ids), text, number)] if len(ids) > 1 else []
    begin = ids[:1] if ids[:1] == [model.tokenizer.bos_token_id] else []
    rest, step = ids[len(begin) :], chunk_tokens - len(begin)
    parts = [rest[start : start + step] for start in range(0, len(rest), step)]
    cut = [Piece((*begin, *part), model.decode(part), number) for part in parts]
    # A piece of one token has nothing behind its first; one of blanks means nothing.
    return [piece for piece in cut if len(piece.ids) > 1 and piece.text.strip()]


def _plain(path: Path) -> list[str]:
    text = read_text(path, "texts")
    if path.suffix == ".txt":
        return text.splitlines()
    csv.field_size_limit(min(sys.maxsize, 1 << 30))
    try:
        return [row[-1] for row in list(csv.reader(io.StringIO(text, newline=""), strict=True))[1:] if row]
    except csv.Error as error:
        raise DataError(f"{path} is no CSV table: {error}") from error


def save_scores(path: Path, scores: Sequence[float], fired: Sequence[bool], name: str) -> None:
    """Write scores as the paper's code does: `,NAME`, then `latent,score` a line; the cell of what never fired is empty.

    Raises:
        StorageError: the disk refused.
    """
    lines = [f",{name}"] + [
        f"{latent},{score!r}" if seen else f"{latent},"
        for latent, (score, seen) in enumerate(zip(scores, fired, strict=True))
    ]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
