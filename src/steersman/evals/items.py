"""Items that a model is tested on: read from JSON or JSONL, sampled by a seed, scored one by one. Knows nothing of their meaning.

An item that cannot be scored is a gap with its reason: it stays in the count, and never becomes a 0.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from steersman.errors import DataError, RequestError, did_you_mean
from steersman.files import parse_json, read_text

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Gap:
    """An item without a number, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Scored:
    """What one item scored; None exactly where it gives a reason."""

    value: float | None
    missing: str | None = None
    answer: str | None = None
    """What the model wrote, where it wrote something and it was asked to be kept."""

    def __post_init__(self) -> None:
        if (self.value is None) != (self.missing is not None):
            raise DataError("an item lacks a score exactly where it gives a reason")


@dataclass(frozen=True, slots=True)
class ItemFile(Generic[T]):
    """The different items of a file, in order."""

    name: str
    """Of the file, without its ending; the test sets of CAA are called by their folder."""
    items: tuple[T | Gap, ...]
    duplicates: int = 0
    """Items that were there before and were dropped."""

    @property
    def sha256(self) -> str:
        """Hex hash of the items, to recognise them by."""
        return hashlib.sha256("\n".join(map(repr, self.items)).encode()).hexdigest()

    def sample(self, limit: int | None, seed: int = 0) -> ItemFile[T]:
        """At most `limit` of the items, drawn by the seed, in their old order; more limit adds items and takes none away.

        Raises:
            DataError: a limit below 1.
        """
        if limit is None or limit >= len(self.items):
            return self
        if limit < 1:
            raise DataError(f"a limit of {limit} items leaves nothing to measure; use 1 or more")
        order = list(range(len(self.items)))
        random.Random(seed).shuffle(order)
        return replace(self, items=tuple(self.items[place] for place in sorted(order[:limit])))


def load_items(path: Path, parse: Callable[[dict[str, Any]], T | Gap]) -> ItemFile[T]:
    """Items of a JSON list or a JSONL file; `parse` makes one of each object, or refuses it with a `DataError`.

    Raises:
        DataError: unreadable, no valid JSON, an object that is refused (with its place), or no item at all.
    """
    return item_file(path, read_rows(path), parse)


def item_file(path: Path, rows: Iterable[tuple[str, Any]], parse: Callable[[dict[str, Any]], T | Gap]) -> ItemFile[T]:
    """Items of rows that come with the place they stand at; equal ones are kept once.

    Raises:
        DataError: a row that is refused (with its place), or no item at all.
    """
    found: dict[str, T | Gap] = {}
    count = 0
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object; write one object for each item")
        try:
            item = parse(row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        count += 1
        # The same item twice says nothing new; gaps are told apart by their rows, not by their reasons.
        found.setdefault(json.dumps(row, sort_keys=True) if isinstance(item, Gap) else repr(item), item)
    if not found:
        raise DataError(f"{path} holds no items; give at least one")
    return ItemFile(_name(path), tuple(found.values()), count - len(found))


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """What a JSON list or the lines of a JSONL file hold, each with the place it stands at.

    Raises:
        DataError: unreadable, too large, not UTF-8, or no valid JSON.
    """
    value = read_json(path) if path.suffix != ".jsonl" else None
    if value is not None:
        if not isinstance(value, list):
            raise DataError(f"{path} holds no list of items; write [{{...}}, {{...}}] or one object a line (.jsonl)")
        yield from ((f"{path}, item {number}", row) for number, row in enumerate(value, 1))
        return
    for number, line in enumerate(read_text(path, "items").split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def read_json(path: Path) -> Any:
    """The one JSON value of a file.

    Raises:
        DataError: unreadable, too large, not UTF-8, or no valid JSON.
    """
    return _parsed(read_text(path, "items"), str(path))


def text_of(row: dict[str, Any], key: str) -> str:
    """The text under a key.

    Raises:
        DataError: it is missing, empty or no text.
    """
    if key not in row:
        raise DataError(f"the key '{key}' is missing{did_you_mean(key, row)}")
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"'{key}' must be a text that is not empty")
    return value


def each_or_gap(items: Sequence[T], score: Callable[[Sequence[T]], Sequence[R]]) -> list[R | Gap]:
    """Score all items at once; where one is refused (too long, no number), all but that one, which becomes a gap.

    Errors that would meet every item alike (another model's recipe, no SAE) are raised.
    """
    if not items:
        return []
    try:
        return list(score(items))
    except RequestError as error:
        if len(items) == 1:
            return [Gap(str(error))]
    half = len(items) // 2
    return [*each_or_gap(items[:half], score), *each_or_gap(items[half:], score)]


def scored_items(items: Sequence[T | Gap], score: Callable[[Sequence[T]], Sequence[float]]) -> list[Scored]:
    """A score for every item, in order; gaps stay gaps, and an item that is refused becomes one."""
    there = [item for item in items if not isinstance(item, Gap)]
    found = iter(each_or_gap(there, score))
    values = [item if isinstance(item, Gap) else next(found) for item in items]
    return [Scored(None, value.reason) if isinstance(value, Gap) else Scored(value) for value in values]


def _name(path: Path) -> str:
    return path.parent.name if path.stem == "test_dataset_ab" else path.stem


def _parsed(text: str, where: str) -> Any:
    return parse_json(text, where, "write a list of objects, or one object a line")
