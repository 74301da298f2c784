"""Where a client asks, as whom and how patiently: address, key, timeouts, retries. Opens no connection.

The key goes to the given address alone: redirects are not followed. It is in no repr, no log and no error; failures come back
as values, so that no error is chained to one that holds what was sent.
"""

from __future__ import annotations

import ipaddress
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from steersman.client.steps import Again, Call, Failure, Head
from steersman.errors import RequestError
from steersman.version import __version__

ERRORS = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError)
"""What the HTTP client raises where there is no answer, or no more of it."""
TIMEOUT_S = 330.0
"""A little longer than a server lets a request take, so that the server is the one to say so."""
RETRIES = 3
_PATIENT_RETRIES = 24  # Some minutes: a server that starts again may first let its answers finish.
_CONNECT_S = 10.0
_LONGEST_WAIT_S = 60.0
_LONGEST_BACKOFF_S = 8.0
_SECRET_LENGTH = 8  # Shorter keys are placeholders, and words of ordinary text.


@dataclass(frozen=True, slots=True)
class Target:
    """One server, as one client sees it."""

    base_url: str
    """Such as `http://127.0.0.1:8765`; a `/v1` at its end is taken off."""
    key: str | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S
    """Longest to wait for more from the server, and for a whole answer that is not a stream."""
    retries: int = RETRIES
    """How often a request is tried again."""

    def __post_init__(self) -> None:
        url, key = self.base_url, self.key
        if not _is_address(url):
            raise RequestError("base_url looks like http://127.0.0.1:8765, without user, password or query")
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise RequestError(
                "the API key is empty or holds a space, a line break or a letter outside ASCII; copy it again"
            )
        if not 0 < self.timeout_s < float("inf") or self.retries < 0:
            raise RequestError("timeout_s must be a finite number above 0, and retries 0 or more")
        object.__setattr__(self, "base_url", url.rstrip("/").removesuffix("/v1"))

    def options(self) -> dict[str, Any]:
        """How the HTTP client is set up, for threads or for asyncio."""
        return {
            "timeout": httpx2.Timeout(self.timeout_s, connect=min(_CONNECT_S, self.timeout_s)),
            "follow_redirects": False,
            "trust_env": not _is_local(self.base_url),  # No proxy between a program and its own machine.
            "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        }

    def request(self, call: Call[Any], is_closed: bool) -> dict[str, Any]:
        """Arguments of `build_request`.

        Raises:
            RequestError: the client is closed, or the body holds what JSON cannot (NaN, half a character).
        """
        if is_closed:
            raise RequestError("this client is closed; make a new one")
        headers = {
            "User-Agent": f"steersman/{__version__}",
            "Accept": "text/event-stream" if call.is_stream else "*/*" if call.is_raw else "application/json",
        }
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        if call.last_event_id is not None and call.last_event_id.isascii() and call.last_event_id.isprintable():
            headers["Last-Event-ID"] = call.last_event_id
        found: dict[str, Any] = {"method": call.method, "url": self.base_url + call.path, "headers": headers}
        if call.query:
            found["params"] = dict(call.query)
        if call.body is not None:
            headers["Content-Type"] = "application/json"
            found["content"] = _json(call)
        return found

    def until(self, call: Call[Any]) -> float:
        """When the answer must be whole, on the monotonic clock. A stream may go on."""
        return float("inf") if call.is_stream else time.monotonic() + self.timeout_s

    def head(self, response: httpx2.Response) -> Head:
        """What an answer begins with."""
        headers = {name.lower(): self.clean(value) for name, value in response.headers.items()}
        return Head(response.status_code, headers, self.clean)

    def failure(self, error: Exception) -> Failure:
        """What an exception of the HTTP client means."""
        if isinstance(error, httpx2.TimeoutException):
            return self.late()
        said = " ".join(self.clean(str(error) or type(error).__name__).split())
        if isinstance(error, httpx2.ConnectError | httpx2.ProxyError | httpx2.InvalidURL):
            return Failure("unreachable", f"cannot reach {self.base_url} ({said})")
        return Failure("broken", f"the connection to {self.base_url} broke off ({said})")

    def late(self) -> Failure:
        """It took too long."""
        return Failure("timeout", f"no answer from {self.base_url} within {self.timeout_s:g} s")

    def clean(self, text: str) -> str:
        """A text without the key."""
        return text if self.key is None or len(self.key) < _SECRET_LENGTH else text.replace(self.key, "***")

    def wait_s(self, step: Again) -> float | None:
        """How long to wait before another attempt; None: there is none."""
        most = max(self.retries, _PATIENT_RETRIES) if step.is_patient and self.retries else self.retries
        if step.attempt > most or (step.wait_s or 0) > _LONGEST_WAIT_S:
            return None
        if step.wait_s is not None:  # A little later than asked, so that not all come back at once.
            return step.wait_s + random.uniform(0, 0.1 + 0.1 * step.wait_s)
        return min(_LONGEST_BACKOFF_S, 0.5 * 2.0 ** min(step.attempt - 1, 10)) * random.uniform(0.5, 1)


def _json(call: Call[Any]) -> bytes:
    try:
        return json.dumps(call.body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{call.method} {call.path}: what is to be sent is no JSON ({error})") from None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port, httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):
        return False
    plain = url.isprintable() and " " not in url and "@" not in parts.netloc
    return bool(
        plain and parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    )


def _is_local(url: str) -> bool:
    host = str(urlsplit(url).hostname)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
