"""Whole answers in OpenAI's form, with what steered them. Knows nothing of HTTP, streams or the engine's workings."""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from steersman.engine.request import FinishReason, Result
from steersman.server.openai_bodies import Body, ChatBody
from steersman.server.openai_logprobs import TokenTexts
from steersman.server.steering import Chosen


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Usage(_Answer):
    """Tokens counted; a prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class GuardNote(_Answer):
    """Something the guard saw, and what it did."""

    at_token: int
    reason: Literal["repetition", "unlikely"]
    measured: float | None
    limit: float
    strength: float
    rewound_to: int | None


class Ending(_Answer):
    """How one answer ended."""

    finish_reason: FinishReason = Field(description="`guard` and `abort` are `stop` in OpenAI's words.")
    strength: float = Field(description="At the end; lower than asked for where the guard softened it.")
    seed: int
    guard_events: list[GuardNote]


class Steered(Ending):
    """How the first answer ended, and what steered all of them."""

    steering: dict[str, JsonValue]
    route: dict[str, JsonValue] | None


class TokenEntry(_Answer):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class WrittenToken(TokenEntry):
    """One that was written, with the likeliest there."""

    top_logprobs: list[TokenEntry]


class ChatLogprobs(_Answer):
    """Of a chat's answer."""

    content: list[WrittenToken]
    refusal: None


class CompletionLogprobs(_Answer):
    """Of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatText(_Answer):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str


class ChatChoice(_Answer):
    """One answer to a chat."""

    index: int
    message: ChatText
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    steersman: Ending


class CompletionChoice(_Answer):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    steersman: Ending


class PlainChat(_Answer):
    """The same chat without any steering."""

    choices: list[ChatChoice]
    usage: Usage


class PlainCompletion(_Answer):
    """The same continuations without any steering."""

    choices: list[CompletionChoice]
    usage: Usage


class _Head(_Answer):
    id: str
    created: int
    model: str = Field(description="As it was asked for.")
    system_fingerprint: str
    usage: Usage
    steersman: Steered


class ChatCompletion(_Head):
    """The answers to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    plain: PlainChat | None = None


class TextCompletion(_Head):
    """Continuations of a text."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    plain: PlainCompletion | None = None


class ModelOut(_Answer):
    """A model name that can be used."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: Literal["model", "recipe", "trait", "set"]


class ModelList(_Answer):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What answers have to repeat of their request."""

    body: Body
    chosen: Chosen
    fingerprint: str
    """Of the model."""
    texts: TokenTexts
    id: str
    created: int

    @classmethod
    def of(cls, body: Body, chosen: Chosen, weights_hash: str, texts: TokenTexts) -> Asked:
        """With an id and the time."""
        return cls(
            body=body,
            chosen=chosen,
            fingerprint=f"fp_{weights_hash[:10]}",
            texts=texts,
            id=("chatcmpl-" if isinstance(body, ChatBody) else "cmpl-") + secrets.token_hex(12),
            created=int(time.time()),
        )

    @property
    def count(self) -> int:
        """Choices; with `compare`, there are as many plain ones behind them."""
        return len(self.body.prompts) * self.body.choices


def whole(asked: Asked, results: Sequence[Result]) -> dict[str, Any]:
    """The body of an answer that is not streamed.

    Args:
        asked: what was asked.
        results: of `requests_of`, in its order.
    """
    steered, plain = results[: asked.count], results[asked.count :]
    made: dict[str, Any] = {
        "id": asked.id,
        "object": "chat.completion" if isinstance(asked.body, ChatBody) else "text_completion",
        "created": asked.created,
        "model": asked.body.model,
        "system_fingerprint": asked.fingerprint,
        "choices": [_choice(asked, index, result) for index, result in enumerate(steered)],
        "usage": usage(asked, steered),
        "steersman": steering_told(asked, steered[0]),
    }
    if plain:
        choices = [_choice(asked, index, result) for index, result in enumerate(plain)]
        made["plain"] = {"choices": choices, "usage": usage(asked, plain)}
    return made


def usage(asked: Asked, results: Sequence[Result]) -> dict[str, int]:
    """Tokens of prompts and answers."""
    prompts = sum(result.prompt_tokens for result in results[:: asked.body.choices])
    written = sum(len(result.token_ids) for result in results)
    return {"prompt_tokens": prompts, "completion_tokens": written, "total_tokens": prompts + written}


def ending(result: Result) -> dict[str, Any]:
    """How an answer ended, in our words."""
    events = [dataclasses.asdict(event) for event in result.guard_events]
    for event in events:
        if not math.isfinite(event["measured"]):
            event["measured"] = None
    return {
        "finish_reason": result.finish_reason,
        "strength": result.strength,
        "seed": result.seed,
        "guard_events": events,
    }


def steering_told(asked: Asked, result: Result) -> dict[str, Any]:
    """How an answer ended, and what steered it."""
    told = dict(asked.chosen.told)
    return {**ending(result), "route": told.pop("route", None), "steering": told}


def finish_reason(result: Result) -> str:
    """In OpenAI's words."""
    return "length" if result.finish_reason == "length" else "stop"


def _choice(asked: Asked, index: int, result: Result) -> dict[str, Any]:
    made: dict[str, Any] = {
        "index": index,
        "logprobs": None,
        "finish_reason": finish_reason(result),
        "steersman": ending(result),
    }
    if isinstance(asked.body, ChatBody):
        made["message"] = {"role": "assistant", "content": result.text}
        if asked.body.top is not None:
            made["logprobs"] = asked.texts.chat(result.logprobs)
        return made
    made["text"] = result.text
    if asked.body.top is not None:
        made["logprobs"] = asked.texts.completion(result.logprobs)[0]
    return made
