"""Give every request an id and every answer that id; catch what nothing else caught. Outside of it nothing makes an answer.

The id is the caller's X-Request-Id when it is a short plain word, so that a log can be followed through several services.
"""

from __future__ import annotations

import logging
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steersman.server.errors import answer

_LOG = logging.getLogger("steersman.server")
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_CAREFUL = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""What keeps browsers from guessing types, framing pages and telling others where they came from."""


class RequestIds:
    """Ids, careful headers, and 500 without details for whatever was not meant to happen."""

    def __init__(self, app: ASGIApp, *, is_shared: bool = False) -> None:
        """Wrap an app; `is_shared` where pages of other origins are allowed to read its answers."""
        self._app = app
        self._careful = {k: v for k, v in _CAREFUL.items() if not (is_shared and k.startswith("Cross-Origin"))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on under its id."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE.fullmatch(given) else secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = request_id
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in self._careful.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - the edge: it is logged, and answered without details
            if not begun:
                await answer(error, scope)(scope, receive, sending)
            else:
                # Half an answer is out. Returning now has the server cut the connection, so that the caller sees it is half.
                _LOG.error("an answer broke off", exc_info=error, extra={"request_id": request_id})
        return None
