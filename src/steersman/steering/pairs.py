"""Contrast pairs: texts or chats that differ in one behaviour, and how to load them. Knows nothing of models.

A pair has a positive side that shows the behaviour and a negative side that does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

from steersman.errors import DataError, did_you_mean
from steersman.facts import fact
from steersman.files import parse_json, read_text
from steersman.models.language_model import Message, Prompt

_ROLES = ("system", "user", "assistant")


@fact
class Pair:
    """Two texts, or two chats that end with the assistant's answer. Refuses empty, identical and mismatched sides."""

    positive: Prompt
    """Shows the behaviour."""
    negative: Prompt
    """Does not, and is otherwise as like the positive side as can be."""

    def __post_init__(self) -> None:
        _check_side("positive", self.positive)
        _check_side("negative", self.negative)
        if isinstance(self.positive, str) != isinstance(self.negative, str):
            raise DataError("one side is a text and the other a chat; write both in the same way")
        if canonical(self.positive) == canonical(self.negative):
            raise DataError("both sides are the same; they must differ in the behaviour")

    @classmethod
    def answers(cls, prompt: str, positive: str, negative: str) -> Self:
        """Two answers to the same user message."""
        return cls(positive=_chat(prompt, positive), negative=_chat(prompt, negative))


def load_pairs(path: Path) -> list[Pair]:
    """Pairs of a JSONL file, one JSON object a line; blank lines are skipped, duplicates are left for `read_contrast`.

    Each object is `{"positive": ..., "negative": ...}`, a side being a text or a list of `{"role", "content"}` messages that
    ends with the assistant's; or `{"prompt": "...", "positive": "...", "negative": "..."}`, two answers to one user message.

    Raises:
        DataError: unreadable, not UTF-8, bad JSON, unknown or missing keys, a bad pair, or fewer than two different ones.
    """
    return _parse(read_text(path, "pairs"), str(path))


def named_sets() -> tuple[str, ...]:
    """Names of the contrast sets that ship with steersman."""
    folder = resources.files("steersman") / "data" / "contrast_sets"
    return tuple(
        sorted(entry.name.removesuffix(".jsonl") for entry in folder.iterdir() if entry.name.endswith(".jsonl"))
    )


def load_named(name: str) -> list[Pair]:
    """Pairs of a shipped contrast set.

    Raises:
        DataError: no set of that name.
    """
    known = named_sets()
    if name not in known:
        raise DataError(f"there is no contrast set {name!r} (shipped: {', '.join(known)}){did_you_mean(name, known)}")
    entry = resources.files("steersman") / "data" / "contrast_sets" / f"{name}.jsonl"
    return _parse(entry.read_text(encoding="utf-8"), name)


def distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs without repetitions, in order.

    Raises:
        DataError: fewer than two are left.
    """
    kept = list({canonical([pair.positive, pair.negative]): pair for pair in pairs}.values())
    if not kept:
        raise DataError("there are no pairs; give at least two, twenty or more are better")
    if len(kept) == 1:
        raise DataError("there is only one pair; give at least two different ones, twenty or more are better")
    return kept


def _parse(text: str, source: str) -> list[Pair]:
    pairs = []
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        item = parse_json(line, where)
        try:
            pairs.append(_pair(item))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    try:
        distinct(pairs)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    return pairs


def _pair(item: Any) -> Pair:
    if not isinstance(item, dict):
        raise DataError('not a JSON object; write {"positive": ..., "negative": ...}, one a line')
    _check_keys("pair", item, required=("positive", "negative"), optional=("prompt",))
    if "prompt" not in item:
        return Pair(positive=_side("positive", item["positive"]), negative=_side("negative", item["negative"]))
    for key, value in item.items():
        if not isinstance(value, str):
            raise DataError(f"'{key}' must be a text where 'prompt' is given")
    return Pair.answers(item["prompt"], item["positive"], item["negative"])


def _side(name: str, value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"'{name}' must be a text or a list of messages")
    for message in value:
        if not isinstance(message, dict):
            raise DataError(f'\'{name}\' holds a message that is no object; write {{"role": ..., "content": ...}}')
        _check_keys("message", message, required=("role", "content"))
    return tuple(value)


def _check_keys(what: str, item: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    for key in item:
        if key not in required + optional:
            raise DataError(f"unknown key {key!r} in a {what}{did_you_mean(key, required + optional)}")
    for key in required:
        if key not in item:
            raise DataError(f"a {what} misses '{key}'")


def _check_side(name: str, side: Prompt) -> None:
    messages = [] if isinstance(side, str) else side
    roles = [str(message["role"]) for message in messages]
    for role in roles:
        if role not in _ROLES:
            raise DataError(f"'{name}' has a message of role {role!r}; use {', '.join(_ROLES)}")
    if not isinstance(side, str) and ("user" not in roles or roles[-1] != "assistant"):
        raise DataError(f"'{name}' must end with an assistant message that answers a user message")
    texts: list[object] = [side] if isinstance(side, str) else [message["content"] for message in messages]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"'{name}' is empty or holds an empty message")
    try:
        "".join(map(str, texts)).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"'{name}' holds half a character (a lone surrogate); write it whole") from error


def _chat(prompt: str, answer: str) -> tuple[Message, ...]:
    return {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}


def canonical(value: Any) -> str:
    """One spelling for equal JSON values, to compare and hash them."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
