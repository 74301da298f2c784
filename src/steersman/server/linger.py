"""Let the rest of a body arrive after its answer, so that the answer does. Knows nothing of why a body was left unread.

A request may be refused before its body is read. Were the connection closed then, the bytes still on their way would have the
system reset it, and what the caller had not read of the answer would be lost with it (RFC 9112, section 9.6).
"""

from __future__ import annotations

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = 5.0
_BYTES = 1 << 26
"""Who sends more, or slower, is cut off."""


class Linger:
    """End an answer only when the body of its request has been read, or has had its chance."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on; after the last piece of the answer take in what is left of the body and forget it."""
        if scope["type"] != "http" or not _comes_with_a_body(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        is_read = is_held = False

        async def receiving() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal is_held
            is_held = not is_read and message["type"] == "http.response.body" and not message.get("more_body", False)
            # The whole answer goes out at once, only its end waits: a caller who reads while it sends sees no difference.
            await send({**message, "more_body": True} if is_held else message)

        await self._app(scope, receiving, sending)
        if is_held:
            left = _BYTES
            with anyio.move_on_after(_SECONDS):
                while not is_read and left > 0:
                    left -= len((await receiving()).get("body", b""))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None


def _comes_with_a_body(headers: Headers) -> bool:
    # Who waits for "100 Continue" has not sent it yet, and reading would ask for it.
    if headers.get("expect", "").lower() == "100-continue":
        return False
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
