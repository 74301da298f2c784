"""Contrast pairs: texts or chats that differ in one behaviour, and what the residual stream holds where they differ.

A pair has a positive side that shows the behaviour and a negative side that does not. Knows how to load pairs, which of
their tokens to read and how to average those; not what a method makes of the averages.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from steersman.errors import DataError, did_you_mean
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, Message, Prompt
from steersman.models.residuals import ModelProfile, read_residuals
from steersman.steering.edits import Add
from steersman.steering.vector import Vector

Read = Literal["answer", "last", "all"]
"""Tokens that are averaged: `answer`, the last message of a chat (of a text: all); `last`, its last token; `all`, every
token up to there. The first token of a sequence is never read: its activations are an attention sink."""

_CHUNK_PAIRS = 32
_ROLES = ("system", "user", "assistant")
_log = logging.getLogger(__name__)


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
        if _canonical(self.positive) == _canonical(self.negative):
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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read pairs from {path}: {error.strerror}") from error
    return _parse(text, str(path))


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
    kept = list({_canonical([pair.positive, pair.negative]): pair for pair in pairs}.values())
    if not kept:
        raise DataError("there are no pairs; give at least two, twenty or more are better")
    if len(kept) == 1:
        raise DataError("there is only one pair; give at least two different ones, twenty or more are better")
    return kept


@dataclass(frozen=True, slots=True)
class Contrast:
    """Mean residuals of the tokens read, per layer and pair; float32 on the CPU."""

    positive: Mapping[int, Float[Tensor, "pairs d_model"]]
    negative: Mapping[int, Float[Tensor, "pairs d_model"]]
    mean_norms: Mapping[int, float]
    """Mean residual norm of each layer."""
    data: dict[str, JsonValue]
    """What was read, for the recipe: counts, hash of the pairs, layers, tokens."""

    def differences(self, layer: int) -> Float[Tensor, "pairs d_model"]:
        """Positive minus negative."""
        return self.positive[layer] - self.negative[layer]

    def edit(self, layer: int, move: Float[Tensor, " d_model"]) -> Add:
        """The edit that adds `move` at strength 1 of its recipe, its length stated in mean residual norms.

        Raises:
            DataError: the move is nothing, so the pairs tell no direction.
        """
        strength = float(move.norm()) / self.mean_norms[layer]
        if strength < 1e-6:
            raise DataError(f"the pairs do not differ at layer {layer} on average; are their sides mixed up?")
        return Add(layer=layer, vector=Vector(move), strength=strength)


def read_contrast(
    model: LanguageModel, pairs: Sequence[Pair], *, profile: ModelProfile, layers: Sequence[int], read: Read = "answer"
) -> Contrast:
    """Run both sides of every pair through the model and average the residual stream over the tokens to read.

    Repeated pairs are read once; how many were dropped is logged and noted in `Contrast.data`.

    Raises:
        DataError: fewer than two different pairs, a side too long or too short to read, no layers, chats for a model
            without a chat template, or another model's profile.
        ModelError: a layer that the model does not have.
    """
    if profile.weights_hash != model.ref.weights_hash:
        raise DataError(f"the profile belongs to another model than {model.name}; measure it again")
    if read not in get_args(Read):
        raise DataError(f"unknown tokens to read {read!r}; use one of {', '.join(get_args(Read))}")
    kept = distinct(pairs)
    layers = sorted(set(layers))
    if len(kept) < len(pairs):
        _log.warning("dropped %d repeated pairs of %d", len(pairs) - len(kept), len(pairs))
    spans = [_located(model, pair, number, read) for number, pair in enumerate(kept, 1)]
    sides: tuple[list[dict[int, Tensor]], list[dict[int, Tensor]]] = ([], [])
    # In chunks: only means are kept, so memory does not grow with all the tokens of a large set.
    for start in range(0, len(spans), _CHUNK_PAIRS):
        flat = [span for pair in spans[start : start + _CHUNK_PAIRS] for span in pair]
        residuals = read_residuals(model, [span.ids for span in flat], layers)
        for index, (span, hidden) in enumerate(zip(flat, residuals, strict=True)):
            # The first token is not among the residuals: its row would be -1.
            rows = slice(span.start - 1, span.stop - 1)
            sides[index % 2].append({layer: hidden[layer][rows].float().mean(0).cpu() for layer in layers})
    positive, negative = ({layer: torch.stack([means[layer] for means in side]) for layer in layers} for side in sides)
    data: dict[str, JsonValue] = {
        "pairs": len(kept),
        "duplicates_dropped": len(pairs) - len(kept),
        "pairs_sha256": hashlib.sha256(_canonical([[p.positive, p.negative] for p in kept]).encode()).hexdigest(),
        "layers": list(layers),
        "read": read,
    }
    return Contrast(positive, negative, {layer: profile.mean_norms[layer] for layer in layers}, data)


@fact
class Span:
    """A side as tokens, cut after the answer, and which of them are read."""

    ids: tuple[int, ...]
    start: int
    stop: int


def locate(model: LanguageModel, side: Prompt, read: Read) -> Span:
    """Tokens of one side, and the span of them that `read` means.

    Raises:
        DataError: too long for the model, nothing to read beyond the first token, or a chat for a model without template.
    """
    ids, start = (model.encode(side), 1) if isinstance(side, str) else _answer(model, side)
    if len(ids) > model.context_tokens:
        raise DataError(
            f"{len(ids)} tokens are more than the {model.context_tokens} that {model.name} reads; shorten it"
        )
    start = {"answer": max(start, 1), "last": max(len(ids) - 1, 1), "all": 1}[read]
    if start >= len(ids):
        raise DataError("there is nothing to read after the first token; write a longer text")
    return Span(ids=tuple(ids), start=start, stop=len(ids))


def _answer(model: LanguageModel, chat: Sequence[Message]) -> tuple[list[int], int]:
    """Tokens of a chat up to the end of its last message, and where that message begins."""
    if not model.is_chat:
        raise DataError(f"{model.name} has no chat template; write the pairs as plain texts")
    # What a template writes around an answer, whatever it is: what two different answers have in common.
    probes = [model.render([*chat[:-1], {"role": "assistant", "content": text}], answer=False) for text in "01"]
    before = probes[0][: _in_common(*probes)]
    after = _in_common(*(probe[::-1] for probe in probes))
    text = model.render(chat, answer=False)
    text = text[: len(text) - after]
    ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    opening = list(model.tokenizer(before, add_special_tokens=False)["input_ids"])
    # Equal to len(opening), unless a token reaches from the template into the answer: that token is read too.
    return ids, _in_common(ids, opening)


def _in_common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items both begin with."""
    return next(
        (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )


def _located(model: LanguageModel, pair: Pair, number: int, read: Read) -> tuple[Span, Span]:
    try:
        return locate(model, pair.positive, read), locate(model, pair.negative, read)
    except DataError as error:
        raise DataError(f"pair {number}: {error}") from error


def _parse(text: str, source: str) -> list[Pair]:
    pairs = []
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}, line {number}: no valid JSON ({error}); write one object a line") from error
        except DataError as error:
            raise DataError(f"{source}, line {number}: {error}") from error
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


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
