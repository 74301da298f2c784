"""Who calls, and whether they may. Knows nothing of what they want done.

With keys: `Authorization: Bearer ssm_…`, verified by the store, a rate for each key. Open (no keys, this machine only): everybody
is `local` and may do everything; so that no web page can talk to the server through a visitor's browser, the Host header must
then name this machine, and an Origin header the server itself or an origin that was allowed. All of that is looked at before a
body is read, so that strangers cannot fill the server's memory.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, cast

import anyio.to_thread
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from steersman.errors import AccessRefused, SteersmanError
from steersman.facts import fact
from steersman.server.context import Deps
from steersman.server.errors import answer
from steersman.server.limits import RateLimiter
from steersman.server.settings import ServerSettings, is_loopback
from steersman.store.facts import SCOPES, KeyRecord, Scope
from steersman.store.keys import Keys

_FOR_ALL = ("/healthz", "/readyz", "/openapi.json")
_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key made by `steersman keys create`. A server without keys takes any, or none.",
)


@fact
class Caller:
    """Who sent a request."""

    owner: str
    """Whose recipes, sets and jobs it reaches."""
    key_id: str | None
    scopes: frozenset[Scope]


LOCAL = Caller(owner="local", key_id=None, scopes=frozenset(SCOPES))
"""Everybody, where no keys are required."""


class Gate:
    """How one server lets callers in: decided when it starts."""

    def __init__(self, settings: ServerSettings, keys: Keys, limiter: RateLimiter) -> None:
        """Look whether keys are required.

        Raises:
            StorageError: the store cannot say.
        """
        self._settings, self._keys, self._limiter = settings, keys, limiter
        required = settings.require_keys
        if required is None:
            required = not settings.is_loopback or keys.any_valid()
        self.requires_keys = required
        """Stays true when the last key expires: a server never becomes open by itself."""

    def admit(self, secret: str | None) -> Caller:
        """The caller that a key belongs to; blocking.

        Raises:
            AccessRefused: no key, or not a valid one.
            StorageError: the store is gone.
        """
        if not self.requires_keys:
            return LOCAL
        if not secret:
            raise AccessRefused("a key is required: send the header 'Authorization: Bearer ssm_…'")
        key: KeyRecord = self._keys.verify(secret)
        return Caller(owner=key.owner, key_id=key.id, scopes=key.scopes)

    def count(self, caller: Caller) -> None:
        """Take one request from the caller's allowance; an open server has none.

        Raises:
            Busy: it is used up.
        """
        if caller.key_id is not None:
            self._limiter.take(caller.key_id)

    def check_page(self, host: str, origin: str | None) -> None:
        """Refuse what a web page sends through a visitor's browser to an open server.

        Args:
            host: the Host header.
            origin: the Origin header, which browsers add to what pages send.

        Raises:
            AccessRefused: the host is not this machine, or the origin is another site.
        """
        if self.requires_keys:
            return
        name = _host_name(host)
        if not is_loopback(name) and name != self._settings.host.lower():
            raise AccessRefused(
                f"this server answers to its own address only, not to '{name[:100]}'; use 127.0.0.1, or require keys",
                is_known=True,
            )
        allowed = self._settings.allowed_origins
        if origin is None or origin in allowed or "*" in allowed:
            return
        if origin.partition("://")[2].lower() != host.lower():
            raise AccessRefused(
                f"pages of {origin[:100]} may not call this server; allow them with --allow-origin", is_known=True
            )


class Door:
    """Ask who is there before anything of a request is looked at but its head."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Let in, or refuse."""
        is_for_all = scope["type"] != "http" or scope["method"] == "OPTIONS" or scope["path"] in _FOR_ALL
        if not is_for_all and hasattr(scope["app"].state, "gate"):
            try:
                await _admitted(HTTPConnection(scope))
            except SteersmanError as error:
                return await answer(error, scope)(scope, receive, send)
        return await self._app(scope, receive, send)


async def _admitted(connection: HTTPConnection) -> Caller:
    """Who sent a request; looked up and counted once.

    Raises:
        AccessRefused: no valid key, or a page that may not.
        Busy: the caller's allowance is used up.
        StorageError: the store is gone.
    """
    found: Caller | None = getattr(connection.state, "caller", None)
    if found is None:
        gate, headers = cast("Gate", connection.app.state.gate), connection.headers
        gate.check_page(headers.get("host", ""), headers.get("origin"))
        scheme, secret = get_authorization_scheme_param(headers.get("authorization"))
        found = LOCAL
        if gate.requires_keys:
            found = await anyio.to_thread.run_sync(gate.admit, secret if scheme.lower() == "bearer" else None)
        connection.state.caller, connection.state.key_id = found, found.key_id
        gate.count(found)
    return found


@cache
def needs(scope: Scope) -> Any:
    """A dependency that gives the caller, when the key has the scope: `caller: Annotated[Caller, needs("generate")]`."""

    async def caller(
        request: Request, _deps: Deps, _bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> Caller:
        found = await _admitted(request)  # The two others: it has started, and its description names the key.
        if scope not in found.scopes:
            raise AccessRefused(
                f"this key may {', '.join(sorted(found.scopes)) or 'do nothing'}, but this needs '{scope}'; "
                "use another key, or make one with `steersman keys create`",
                is_known=True,
            )
        return found

    return Depends(caller)


def _host_name(host: str) -> str:
    """A Host header without its port and brackets, in small letters."""
    name = host.strip().lower()
    return name[1:].split("]")[0] if name.startswith("[") else name.rsplit(":", 1)[0] if ":" in name else name
