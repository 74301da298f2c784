"""Look at the body of a request before a route does: its size, that it is JSON in UTF-8, that its numbers and texts are sound.

A form cannot get through: a web page may send those anywhere without asking. Python's JSON reader takes NaN, 1e999 and half
characters (lone surrogates), none of which anything behind it can use. Knows nothing of fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import NoReturn

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steersman.errors import Busy
from steersman.server.errors import Refusal, answer
from steersman.server.limits import while_connected

_CHANGES = ("POST", "PUT", "PATCH", "DELETE")
_HELD_UPLOADS = 4
_LARGE_BYTES = 1 << 16
# JSON that holds none of these is sound when it is JSON at all: constants, huge numbers, escapes of half characters or NUL.
_DOUBTFUL = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{200}|\\u(?:[dD][89a-fA-F]|0000)")


class BodyLimit:
    """Refuse what is too large (413), no JSON (415) or unsound JSON (400); hand the rest on whole, while its caller is there."""

    def __init__(
        self, app: ASGIApp, *, most_bytes: Callable[[str], int], most_held_bytes: int, is_logged: bool
    ) -> None:
        """Wrap an app.

        Args:
            app: what sees the sound ones.
            most_bytes: the largest body for a path.
            most_held_bytes: the most that all bodies being received may take together; more gets 503.
            is_logged: leave bodies where the log finds them.
        """
        self._app, self._most_bytes, self._most_held = app, most_bytes, most_held_bytes
        self._is_logged = is_logged
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the body first."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if b"%00" in scope.get("raw_path", b"") or b"%00" in scope.get("query_string", b""):
            return await answer(Refusal(400, "the address holds a NUL character"), scope)(scope, receive, send)
        if scope["method"] not in _CHANGES:
            return await self._app(scope, receive, send)
        held: list[bytes] = []
        try:
            try:
                body = await self._read(scope, receive, held)
                await _check(body)
            except (Refusal, Busy) as error:
                return await answer(error, scope)(scope, receive, send)
            if body is None:
                return None
            if self._is_logged:
                scope["state"]["body"] = body
            await while_connected(self._app, scope, _replay(body, receive), receive, send)
        finally:
            self._held -= sum(map(len, held))
        return None

    async def _read(self, scope: Scope, receive: Receive, held: list[bytes]) -> bytes | None:
        """The whole body; None when the caller hung up. What `held` has counts against all others."""
        headers, most = Headers(scope=scope), self._most_bytes(scope["path"])
        length = headers.get("content-length", "0")
        kind = headers.get("content-type")
        if kind is not None and kind.split(";")[0].strip().lower() != "application/json":
            raise Refusal(415, f"send JSON with 'Content-Type: application/json', not '{kind[:100]}'")
        if not length.isascii() or not length.isdigit():
            raise Refusal(400, "Content-Length is not a number")
        if int(length[:20]) > most:
            raise _too_large(most)
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size and kind is None:
                raise Refusal(
                    415, "send JSON with 'Content-Type: application/json'; this body says nothing of its type"
                )
            if size > most:
                raise _too_large(most)
            held.append(piece)
            self._held += len(piece)
            if self._held > self._most_held:
                raise Busy("too much is being sent to this server at once; try again", retry_after_s=2.0)
            if not message.get("more_body", False):
                return b"".join(held)


def most_held(upload_bytes: int) -> int:
    """How much all bodies may take together, when one may take this much."""
    return _HELD_UPLOADS * upload_bytes


def _too_large(most: int) -> Refusal:
    size = f"{most >> 20} MB" if most >= 1 << 20 else f"{most:,} bytes"
    return Refusal(413, f"the body is larger than {size}", headers={"Connection": "close"})


async def _check(body: bytes | None) -> None:
    if body is None:
        return
    if len(body) > _LARGE_BYTES:
        await anyio.to_thread.run_sync(check_json, body)
    else:
        check_json(body)


def check_json(body: bytes) -> None:
    """Refuse JSON that Python would read but nothing can use; what is no JSON at all is left to whoever parses it.

    Raises:
        Refusal: 400; no UTF-8, a number that is not finite, half a character, or a NUL.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8 (byte {error.start})", code="invalid_request") from error
    if not _DOUBTFUL.search(body):
        return
    try:
        value = json.loads(text, parse_constant=_constant, parse_float=_number, parse_int=_whole)
    except (ValueError, RecursionError):
        return
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item


def _check_text(text: str) -> None:
    if "\0" in text:
        raise Refusal(400, "a text in the body holds a NUL character; leave it out", code="invalid_request")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(
            400, "a text in the body holds half a character (a lone surrogate); write it whole", code="invalid_request"
        ) from error


def _constant(name: str) -> NoReturn:
    raise Refusal(400, f"the body holds {name}; numbers must be finite", code="invalid_request")


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise Refusal(400, f"the body holds {text[:20]}…, too large for a number", code="invalid_request")
    return value


def _whole(text: str) -> int:
    if len(text) > 300:
        raise Refusal(400, f"the body holds {text[:20]}…, too large for a number", code="invalid_request")
    return int(text)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then what the connection says (that the caller hung up)."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
