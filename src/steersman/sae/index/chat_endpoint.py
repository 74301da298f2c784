"""Ask an OpenAI-compatible chat endpoint over plain HTTP. Knows nothing of what is asked.

The key is sent to the given address alone, never to where it redirects, and appears in no error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from steersman.errors import RequestError

_MAX_BYTES = 1 << 20
_EXCERPT = 200


class _NoRedirect(HTTPRedirectHandler):
    """Answers a redirect with the error that it is: the key goes nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def chat_endpoint(
    base_url: str, model: str, *, key: str | None = None, timeout_s: float = 60.0, max_tokens: int = 200
) -> Callable[[Sequence[Mapping[str, str]]], str]:
    """A function from chat messages to the answer's text: `POST {base_url}/chat/completions`, temperature 0.

    Args:
        base_url: such as `http://localhost:8080/v1`.
        model: the name that the endpoint knows it by.
        key: sent as a bearer token; None sends none.
        timeout_s: for the connection and every read.
        max_tokens: of the answer.

    Raises:
        RequestError: an address, key or limit that cannot be used. The function made raises it where the endpoint cannot be
            reached, refuses, or answers in another format.
    """
    try:
        parts = urlsplit(base_url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query:
        raise RequestError("the base URL of an endpoint looks like https://host/v1, without user, password or query")
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise RequestError(
            "the API key is empty or holds a space, a line break or a letter outside ASCII; copy it again"
        )
    if not (math.isfinite(timeout_s) and timeout_s > 0) or max_tokens < 1:
        raise RequestError("timeout_s must be above 0 and max_tokens at least 1")
    url = base_url.rstrip("/") + "/chat/completions"
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    opener = build_opener(_NoRedirect)

    def ask(messages: Sequence[Mapping[str, str]]) -> str:
        body = {
            "model": model,
            "messages": [dict(each) for each in messages],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        request = Request(url, json.dumps(body).encode(), headers, method="POST")
        why = None
        try:
            with opener.open(request, timeout=timeout_s) as response:
                return _content(response.read(_MAX_BYTES), url)
        except HTTPError as error:
            with error:
                why = f"answered {error.code}: {_excerpt(error, key)}"
        except (OSError, HTTPException, ValueError) as error:
            why = f"cannot be reached or broke off ({error})"
        # Raised here, so that no error is chained to it: theirs may hold what was sent.
        raise RequestError(_without(key, f"{url} {why}; check the address, the model's name and the key"))

    return ask


def _content(data: bytes, url: str) -> str:
    """Text of the first choice.

    Raises:
        RequestError: there is none.
    """
    try:
        text = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise RequestError(f"{url} did not answer in the format of a chat completion; check the address")
    return text


def _excerpt(error: HTTPError, key: str | None) -> str:
    """The beginning of what a refusal says, on one line."""
    try:
        said = error.read(_MAX_BYTES).decode(errors="replace")
    except (OSError, HTTPException):
        said = ""
    # The key goes before the cut: half a key is not found any more.
    return " ".join(_without(key, said).split())[:_EXCERPT] or str(error.reason)


def _without(key: str | None, message: str) -> str:
    return message if key is None else message.replace(key, "***")
