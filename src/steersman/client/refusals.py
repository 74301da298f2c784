"""What went wrong, in words: `ApiError` from whatever a server said or did not say. No connection.

What the server says is quoted on one line, cut, and without the client's key. The key goes before the cut: half a key is not
found any more.
"""

from __future__ import annotations

import json
import math
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from steersman.client.steps import Call, Failure, Head
from steersman.errors import ApiError

_EXCERPT = 300
_FIXES = {
    401: "give the client a valid key (api_key=...)",
    403: "use a key with the scope that this needs",
    413: "send less at once",
    429: "ask less often, or wait a while",
    502: "the server behind this address is down; try again later",
    503: "try again later",
    504: "the server behind this address took too long; try again later",
}


def refusal(call: Call[Any], head: Head, data: bytes) -> ApiError:
    """An answer that is not the one asked for, by its status."""
    request_id = head.headers.get("x-request-id")
    if 300 <= head.status < 400:
        place = one_line(head.headers.get("location", "nowhere")).split("?")[0]
        return ApiError(
            f"{name_of(call)} answered {head.status}: it points to {place}; give the client that address if you trust it, "
            "the key is not sent on by itself",
            status=head.status,
            kind="redirect",
            request_id=request_id,
        )
    return told(call, head, data, f"answered {head.status}")


def told(call: Call[Any], head: Head, data: bytes, verb: str) -> ApiError:
    """The error that a server puts into words: `{"error": {...}}`, or whatever there is."""
    try:
        said = json.loads(head.clean(data.decode(errors="replace")))["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        said = None
    facts = said if isinstance(said, dict) else {}
    message, kind, own_id = (facts.get(name) for name in ("message", "type", "request_id"))
    text = one_line(message) if isinstance(message, str) else _excerpt(head, data) or "it does not say why"
    fix = "" if ";" in text else _FIXES.get(head.status, "")
    request_id = own_id if isinstance(own_id, str) else head.headers.get("x-request-id")
    message = f"{name_of(call)} {verb}: {text}" + (f"; {fix}" if fix else "")
    return ApiError(
        message + (f" (request {request_id})" if request_id else ""),
        status=head.status,
        kind=kind if isinstance(kind, str) else "error",
        request_id=request_id,
    )


def lost(call: Call[Any], failure: Failure, head: Head | None) -> ApiError:
    """No answer, or not all of it."""
    fix = {
        "unreachable": "check that the server runs (steersman serve) and its address",
        "timeout": "give the client more time (timeout_s=...), or ask for less",
        "too_large": "ask for less",
    }.get(failure.kind, "try again; the server's log may say why")
    request_id = head.headers.get("x-request-id") if head else None
    return ApiError(f"{name_of(call)}: {failure.why}; {fix}", status=0, kind=failure.kind, request_id=request_id)


def nonsense(call: Call[Any], head: Head, data: bytes, why: str) -> ApiError:
    """An answer that is no answer."""
    found = f" ({_excerpt(head, data)})" if data.strip() else ""
    return ApiError(
        f"{name_of(call)} answered {head.status}, but {why}{found}; is this a steersman server of the client's version?",
        status=head.status,
        kind="not_understood",
        request_id=head.headers.get("x-request-id"),
    )


def _excerpt(head: Head, data: bytes) -> str:
    return one_line(head.clean(data.decode(errors="replace")))[:120]


def one_line(text: str) -> str:
    """The beginning of what somebody else said, on one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _EXCERPT]).split())[:_EXCERPT]


def name_of(call: Call[Any]) -> str:
    """How messages name a request; without its query, which may be long or private."""
    return f"{call.method} {call.path}"


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date (RFC 9110, 10.2.3)."""
    try:
        seconds = float(value or "")
    except ValueError:
        try:
            # A date without a zone is in UTC.
            seconds = parsedate_to_datetime(value or "").replace(tzinfo=UTC).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
