"""Logs as one JSON object a line, and one such line for every request. Never a key, a prompt or a query, unless asked for.

Knows nothing of what is done; the route's template stands for the path, which may hold names.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steersman.server.metrics import Metrics

_ACCESS = logging.getLogger("steersman.access")
_FIELDS = ("method", "route", "status", "ms", "key_id", "request_id", "query", "body", "address", "model", "kept_in")
_SHOWN_BYTES = 4096


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time, level, logger, message, our fields, and the trace where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without line breaks inside."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in _FIELDS if vars(record).get(name) is not None}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class PlainLines(logging.Formatter):
    """The same for a person at a terminal: a request as one short line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a trace below it where there is one."""
        said, facts = record.getMessage(), vars(record)
        if record.name == _ACCESS.name:
            said = f"{facts['method']} {facts['route']} {facts['status']}, {facts['ms']:g} ms"
        time_ = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{time_} {level}{said}{trace}"


@contextlib.contextmanager
def to_stderr(*, as_json: bool) -> Iterator[None]:
    """Meanwhile, have every log line of the process, ours and those of libraries, written to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    # uvicorn's word for an answer that broke off, which our own line says with the request's id.
    handler.addFilter(lambda record: not record.getMessage().startswith("ASGI callable returned without completing"))
    root, ours = logging.getLogger(), logging.getLogger("steersman")
    before = (list(root.handlers), root.level, ours.level)
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])


class AccessLog:
    """Log and count every request when its last byte is out, or when its caller is gone."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, log_prompts: bool) -> None:
        self._app, self._metrics, self._log_prompts = app, metrics, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on; log it when it is over."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status, began = 499, time.perf_counter()  # As nginx calls a caller that left before its answer began.

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            status = 500 if status == 499 else status
            raise
        finally:
            seconds = time.perf_counter() - began
            method, route = method_of(scope), route_of(scope)
            self._metrics.request(method, route, status, seconds)
            _ACCESS.info("request", extra={**self._facts(scope, status, seconds), "method": method, "route": route})
        return None

    def _facts(self, scope: Scope, status: int, seconds: float) -> dict[str, Any]:
        state = scope.get("state", {})
        facts = {
            "status": status,
            "ms": round(1000 * seconds, 1),
            "key_id": state.get("key_id"),
            "request_id": state.get("request_id"),
        }
        if self._log_prompts:
            facts["query"] = scope.get("query_string", b"").decode("latin-1") or None
            facts["body"] = state.get("body", b"")[:_SHOWN_BYTES].decode("utf-8", "replace") or None
        return facts


def route_of(scope: Scope) -> str:
    """The template of the route that a request found, or `-`; never the path, of which there are endlessly many."""
    return str(getattr(scope.get("route"), "path", "-"))


def method_of(scope: Scope) -> str:
    """The method, or `-` for words that HTTP does not know."""
    known = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
    return scope["method"] if scope["method"] in known else "-"
