"""Send one request to a chat endpoint and say what came of it. Knows nothing of retries, caches or what is asked.

The key is sent to the given address alone, never to where it redirects. Failures are returned, not raised, so that no error is
chained to one that holds what was sent; what the endpoint says is quoted without the key, on one line.
"""

from __future__ import annotations

import ipaddress
import json
import math
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, IncompleteRead
from ssl import SSLCertVerificationError
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from steersman.errors import EndpointError
from steersman.version import __version__

_MAX_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 16
_EXCERPT = 200
_SECRET_LENGTH = 8  # Shorter keys are placeholders for local servers, and words of ordinary text.
_TRY_AGAIN = {408, 425, 429}
_FIX = "check that it runs, its address (STEERSMAN_LLM_URL) and the model's name (STEERSMAN_LLM_MODEL)"
_FIXES = {
    400: "check the model's name (STEERSMAN_LLM_MODEL) and the settings",
    401: "set STEERSMAN_LLM_KEY to a valid key",
    403: "check the key (STEERSMAN_LLM_KEY) and what it may use",
    429: "wait a while, or ask less at once",
}


class Answer(NamedTuple):
    """What the model said."""

    text: str
    prompt_tokens: int
    """As the endpoint counts them; 0 where it does not."""
    completion_tokens: int


class Failure(NamedTuple):
    """Why there is no answer."""

    why: str
    """Goes on after the address: "answered 500: ..."."""
    fix: str = _FIX
    again: bool = False
    """Whether the same request may well succeed later."""
    wait_s: float | None = None
    """When the endpoint wants to be asked again."""


class Connection:
    """An address and a key to ask with. Opens a connection for each request; safe to share between threads."""

    def __init__(self, base_url: str, key: str | None, timeout_s: float) -> None:
        """Check the address and the key.

        Args:
            base_url: such as `http://localhost:8080/v1`.
            key: sent as a bearer token; None sends none.
            timeout_s: for the connection, for every read, and for a whole body.

        Raises:
            EndpointError: one of them cannot be used.
        """
        parts = _split(base_url)
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise EndpointError(
                "the API key is empty or holds a space, a line break or a letter outside ASCII; copy it again"
            )
        self.url = base_url.rstrip("/") + "/chat/completions"
        self._key, self._timeout_s = key, timeout_s
        # Built by hand, since urllib's own opener also follows redirects and opens files.
        self._opener = OpenerDirector()
        proxies = ProxyHandler({}) if _is_local(parts) else ProxyHandler()
        for handler in (proxies, HTTPHandler(), HTTPSHandler()):
            self._opener.add_handler(handler)

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    def post(self, body: bytes) -> Answer | Failure:
        """Send one request and read the answer."""
        headers = {"Content-Type": "application/json", "User-Agent": f"steersman/{__version__}"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(self.url, body, headers, method="POST")
        until = time.monotonic() + self._timeout_s
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                status: int = response.status
                if status != 200:
                    return self._refusal(status, response, until)
                data = _read(response, until)
        except (OSError, HTTPException, ValueError) as error:
            return self._broken(error)
        return Failure(f"sent more than {_MAX_BYTES >> 20} MiB") if data is None else self._content(data)

    def _broken(self, error: Exception) -> Failure:
        why = error.reason if isinstance(error, URLError) else error
        if isinstance(why, TimeoutError):
            fix = "give it more time, or choose a faster model"
            return Failure(f"did not answer within {self._timeout_s:g} s", fix, again=True)
        said = self._quoted(str(why) or type(why).__name__)
        return Failure(f"cannot be reached or broke off ({said})", again=not isinstance(why, SSLCertVerificationError))

    def _refusal(self, status: int, response: Any, until: float) -> Failure:
        said = ""
        if status != 401:  # Some endpoints quote parts of the key that they refuse.
            try:
                said = self._quoted(_complaint(_read(response, until) or b""))
            except (OSError, HTTPException):
                said = ""
        why = f"answered {status}" + (f" ({said})" if said else "")
        again = status in _TRY_AGAIN or status >= 500
        fix = _FIXES.get(status, "try again later" if again else _FIX)
        return Failure(why, fix, again, _retry_after_s(response.headers.get("Retry-After")) if again else None)

    def _content(self, data: bytes) -> Answer | Failure:
        """Text of the first choice."""
        try:
            found = json.loads(data)
            text = found["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return Failure("did not answer in the format of a chat completion")
        if not isinstance(text, str):
            return Failure(
                "answered without any text", "raise max_tokens, or choose a model that writes its answer as text"
            )
        text = text.encode(errors="replace").decode()  # Half a surrogate pair is no text.
        counts = found.get("usage")
        used = [counts.get(name) if isinstance(counts, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
        safe = text if self._key is None or len(self._key) < _SECRET_LENGTH else text.replace(self._key, "***")
        return Answer(safe, *(count if type(count) is int else 0 for count in used))

    def _quoted(self, said: str) -> str:
        """The beginning of what was said, on one line. The key goes before the cut: half a key is not found any more."""
        said = said if self._key is None else said.replace(self._key, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in said).split())[:_EXCERPT]


def is_local(base_url: str) -> bool:
    """Whether an address is on this machine.

    Raises:
        EndpointError: it is no address.
    """
    return _is_local(_split(base_url))


def _split(base_url: str) -> SplitResult:
    """The address, taken apart.

    Raises:
        EndpointError: it is none, or holds a secret.
    """
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    right = parts.scheme in ("http", "https") and parts.hostname and base_url.isascii() and base_url.isprintable()
    if not right or " " in base_url or "@" in parts.netloc or parts.query or parts.fragment:
        raise EndpointError("the base URL of an endpoint looks like https://host/v1, without user, password or query")
    return parts


def _is_local(parts: SplitResult) -> bool:
    try:
        return ipaddress.ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        return parts.hostname == "localhost"


def _read(response: Any, until: float) -> bytes | None:
    """The body; None where it is too long.

    Raises:
        TimeoutError: it trickles in too slowly.
        IncompleteRead: it breaks off.
    """
    data = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        if len(data) > _MAX_BYTES:
            return None
        if time.monotonic() > until:
            raise TimeoutError
    if response.length:  # What the header promised and never came; read1 does not mind.
        raise IncompleteRead(bytes(data), response.length)
    return bytes(data)


def _complaint(data: bytes) -> str:
    """The message of a refusal, in OpenAI's form where it has that."""
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)["error"]
        said = found["message"] if isinstance(found, dict) else found
    except (ValueError, LookupError, TypeError, RecursionError):
        return text
    return said if isinstance(said, str) else text


def _retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        # A date without a zone is in UTC.
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
