"""Ask a language model for JSON, strictly, and many things at once. Knows nothing of HTTP, nor of what is asked.

What a model answers is never guessed: a reply that cannot be read is shown to the model again with the reason, and when it
still cannot, that is an error.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import JsonValue

from steersman.errors import EndpointError

Messages = Sequence[Mapping[str, str]]
"""A chat: `role` and `content` of each message."""

Ask = Callable[[Messages], str]
"""A chat to the text of the answer; raises `EndpointError` where there is none. An `endpoint.Endpoint` is one."""

T = TypeVar("T")
R = TypeVar("R")

_EXCERPT = 80
_SHOWN = 4000  # Characters of an unusable reply that its author is shown again.


def ask_json(ask: Ask, messages: Messages, parse: Callable[[JsonValue], T], retries: int = 2) -> T:
    """What a model's reply says, once it is JSON that `parse` accepts.

    Args:
        ask: the model, such as an `Endpoint`.
        messages: the chat; it says which JSON is wanted.
        parse: the reply's JSON to what is wanted; raises `ValueError` with what is wrong, in words the model can follow.
        retries: how often a reply that cannot be used is asked for again, with the reason.

    Raises:
        EndpointError: no usable reply, or none at all.
    """
    chat, asked = list(messages), list[Messages]()
    why = ""
    for _ in range(retries + 1):
        reply = ask(chat)
        asked.append(chat)
        try:
            return parse(_decoded(reply))
        except ValueError as error:
            why = " ".join(str(error).split())
        again = f"This reply cannot be used: {why}. Reply again: the JSON that was asked for, and nothing else."
        chat = [*messages, {"role": "assistant", "content": reply[:_SHOWN]}, {"role": "user", "content": again}]
    forget = getattr(ask, "forget", lambda _: None)  # What keeps answers shall not keep these.
    for each in asked:
        forget(each)
    raise EndpointError(f"no usable answer in {retries + 1} tries: {why}; a larger model follows the format better")


def excerpt(reply: str) -> str:
    """The beginning of a reply, quoted, on one line."""
    return repr(reply if len(reply) <= _EXCERPT else reply[:_EXCERPT] + "…")


def fields_of(value: JsonValue, *names: str) -> dict[str, Any]:
    """The value as an object with exactly these fields, in this order.

    The order is part of it: a model that is to reason first must have written its reasons before the rest.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(value, dict) or list(value) != list(names):
        wanted = ", ".join(f'"{name}": ...' for name in names)
        raise ValueError(
            f"expected {{{wanted}}}, with these fields alone and in this order, not {excerpt(json.dumps(value))}"
        )
    return value


def in_parallel(function: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """`function` of every item, at most `workers` at once, in the items' order.

    The first error stops what has not begun and is raised. Ctrl-C is raised at once: what is on its way is left behind.
    """
    todo = deque(enumerate(items))
    done: dict[int, R] = {}
    failed: list[BaseException] = []

    def work() -> None:
        while not failed:
            try:
                index, item = todo.popleft()
            except IndexError:
                return
            try:
                done[index] = function(item)
            except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread
                failed.append(error)

    # Daemons, unlike those of concurrent.futures: an interrupted program does not wait for answers nobody wants any more.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        todo.clear()
    if failed:
        raise failed[0]
    return [done[index] for index in range(len(items))]


def _unfenced(reply: str) -> str:
    """What stands in the code fence that many models put around JSON, where that is the whole reply; else the reply."""
    found = re.fullmatch(r"\s*```(?:json)?\n(.*)\n```\s*", reply, re.DOTALL)
    return found[1] if found else reply


def _decoded(reply: str) -> JsonValue:
    """The JSON that a reply is, standard JSON alone.

    Raises:
        ValueError: it is not.
    """
    try:
        value: JsonValue = json.loads(_unfenced(reply), object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos}): {excerpt(reply)}") from None
    except RecursionError:
        raise ValueError(f"JSON nested too deeply: {excerpt(reply)}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an object names the same field twice")
    return dict(pairs)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
