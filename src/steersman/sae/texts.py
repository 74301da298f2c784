"""Read texts and chats from files, row by row. Every error names the file and the line. Knows nothing of mixes or tokens."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steersman.errors import DataError
from steersman.models.language_model import Message, Prompt

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")
"""Files that can be read: one JSON object a line, or plain text in paragraphs."""

_PASSAGE_CHARS, _PASSAGE_CHARS_MAX = 2_000, 16_000


@dataclass(frozen=True, slots=True)
class Row:
    """One text or chat of a file."""

    content: Prompt
    kind: str
    """What the row itself says it is (`kind`), or nothing."""
    source: str
    """Where the row itself says it is from (`source`), or nothing."""
    path: Path
    line: int
    digest: bytes
    """BLAKE2b of the content, 8 bytes: decides what is held out, so that the same text never stands on both sides."""
    n_chars: int
    """Length of the text, or of all messages."""


def read_rows(path: Path) -> Iterator[Row]:
    """The texts and chats of one file, in order; empty ones are left out. Plain text comes in passages of whole paragraphs.

    Raises:
        DataError: naming the file and the line.
    """
    name = path.name.removesuffix(".gz")
    if not name.endswith((".jsonl", ".txt")):
        raise DataError(f"{path} is in no known format; use one of {', '.join(SUFFIXES)}")
    for line, item in _passages(path) if name.endswith(".txt") else _objects(path):
        try:
            content = item if isinstance(item, str) else _content(item)
            kind, source = ("" if isinstance(item, str) else str(item.get(key) or "") for key in ("kind", "source"))
            texts = [content] if isinstance(content, str) else [message["content"] for message in content]
            if not any(text.strip() for text in texts):
                continue
            written = json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}, line {line}: half a character (a lone surrogate); write it whole") from error
        except DataError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        digest = hashlib.blake2b(written, digest_size=8).digest()
        yield Row(content, kind, source, path, line, digest, sum(map(len, texts)))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8 text (byte {error.start}); save the file as UTF-8"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged after line {number} ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read texts from {path}: {error.strerror}") from error


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: no valid JSON ({error}); write one object a line") from error
        if not isinstance(item, dict):
            raise DataError(f'{path}, line {number}: not a JSON object; write {{"text": ...}} or {{"messages": [...]}}')
        yield number, item


def _passages(path: Path) -> Iterator[tuple[int, str]]:
    """Paragraphs put together up to a passage's length, with the line where each begins."""
    start, size = 1, 0
    held: list[str] = []
    for number, line in _lines(path):
        if not held:
            start = number
        held.append(line)
        size += len(line)
        if size >= _PASSAGE_CHARS_MAX or (size >= _PASSAGE_CHARS and not line.strip()):
            yield start, "".join(held)
            held, size = [], 0
    yield start, "".join(held)


def _content(item: Mapping[str, Any]) -> Prompt:
    if ("text" in item) == ("messages" in item):
        raise DataError("a row needs either 'text' or 'messages'")
    if "text" in item:
        if not isinstance(item["text"], str):
            raise DataError("'text' must be a text")
        return item["text"]
    messages = item["messages"]
    if not isinstance(messages, list):
        raise DataError("'messages' must be a list of messages")
    for message in messages:
        fields = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(field, str) for field in fields):
            raise DataError('a message must be {"role": ..., "content": ...}, both texts')
    return tuple(Message(role=message["role"], content=message["content"]) for message in messages)
