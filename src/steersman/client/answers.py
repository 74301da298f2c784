"""Ask for text: chats, completions, streams of them, and the names of models. Paths and bodies, no connection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

from pydantic import JsonValue

from steersman.client.facts import Answer, ModelInfo, Page, Piece
from steersman.client.flow import ask, listen
from steersman.client.steps import Call, Flow, Item, Streamed
from steersman.errors import ApiError, RequestError, did_you_mean

_STEERING = ("recipe", "recipes", "traits", "set", "edits", "abort", "strength", "mode", "guard")
_DONE = "[DONE]"


class Options(TypedDict, total=False):
    """How to answer. What is left out is up to the server."""

    model: str
    """`default`, `NAME:RECIPE`, or the id of a set."""
    recipe: str
    """Id or name of a recipe, or the name of a trait."""
    recipes: Mapping[str, float]
    """Several, each with its multiplier."""
    traits: Mapping[str, float]
    """Pre-made ones, or those of `set`, each with its multiplier."""
    set: str
    """Id of a set of vectors."""
    edits: Sequence[Mapping[str, Any]]
    """Edits as in a recipe's file, vectors as lists of numbers."""
    abort: Mapping[str, Any]
    """A condition as in a recipe's file, which ends the answer."""
    strength: float
    """Factor on all of it."""
    mode: Literal["add", "replace"]
    """To the server's own steering, or in its place."""
    guard: Literal["off", "warn", "soften", "stop"]
    """What to do about degenerate text."""
    compare: bool
    """Answer without steering as well."""
    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    n: int
    """How many answers."""
    logprobs: bool | int
    top_logprobs: int


def chat(messages: str | Sequence[Mapping[str, str]], **options: Unpack[Options]) -> Flow[Answer]:
    """Have the model answer.

    Args:
        messages: the user's words, or a chat as `{"role", "content"}` each.
        options: see `Options`.

    Raises:
        ApiError: the server refuses, cannot be reached, or answers what is no answer.
        RequestError: an unknown option.
    """
    body = {"messages": _chat(messages), **_body(options)}
    return (yield from ask(_call("/v1/chat/completions", body)))


def complete(prompt: str, **options: Unpack[Options]) -> Flow[Answer]:
    """Have the model go on with a text. Options and errors as of `chat`."""
    return (yield from ask(_call("/v1/completions", {"prompt": prompt, **_body(options)})))


def stream(messages: str | Sequence[Mapping[str, str]], **options: Unpack[Options]) -> Streamed[Piece]:
    """Have the model answer, piece by piece; the last piece carries the usage. Arguments and errors as of `chat`.

    Leave it early by closing it (or at the end of a `with` block), and the server stops writing.
    """
    body = {"messages": _chat(messages), **_body(options), "stream": True, "stream_options": {"include_usage": True}}
    call = Call(
        method="POST",
        path="/v1/chat/completions",
        body=body,
        read=Piece.model_validate,
        is_harmless=True,
        is_stream=True,
    )
    flow = listen(call)
    got: Any = None
    while True:
        try:
            step = flow.send(got)
        except StopIteration:
            raise ApiError(
                "POST /v1/chat/completions: the stream ended before the answer did; ask again", status=0, kind="broken"
            ) from None
        if not isinstance(step, Item):
            got = yield step
        elif step.value.data == _DONE:
            return
        else:
            got = None
            yield Item(_piece(step.value.data))


def models() -> Flow[tuple[ModelInfo, ...]]:
    """Names that `model=` may be.

    Raises:
        ApiError: as of `chat`.
    """
    read = Page[ModelInfo].model_validate
    return (yield from ask(Call(method="GET", path="/v1/models", read=read, is_harmless=True))).data


def _call(path: str, body: Mapping[str, Any]) -> Call[Answer]:
    # Text that is written twice harms nobody.
    return Call(method="POST", path=path, body=body, read=Answer.model_validate, is_harmless=True)


def _piece(data: str) -> Piece:
    try:
        return Piece.model_validate(json.loads(data))
    except ValueError:
        told = "POST /v1/chat/completions: a piece of the stream is not in the form expected"
    raise ApiError(f"{told}; is this a steersman server of the client's version?", status=200, kind="not_understood")


def _chat(messages: str | Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [dict(message) for message in messages]


def _body(options: Options) -> dict[str, JsonValue]:
    """Options as the server takes them: steering in an object of its own.

    Raises:
        RequestError: an unknown one.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise RequestError(f"unknown option {name!r}{did_you_mean(name, Options.__annotations__)}")
    given: dict[str, Any] = {"model": "default", **options}
    steering = {name: given.pop(name) for name in _STEERING if name in given}
    return {**given, "steering": steering} if steering else given
