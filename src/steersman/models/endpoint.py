"""Ask a language model behind any OpenAI-compatible chat endpoint: retried, cached, counted, many at once.

    POST {base_url}/chat/completions      {"model", "messages", "temperature", "max_tokens"}

The key stands in no error, repr or cache file. Knows nothing of what is asked; `asking` reads what comes back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from steersman.errors import EndpointError
from steersman.facts import fact
from steersman.files import write_bytes
from steersman.models.asking import Messages, in_parallel
from steersman.models.chat_http import Answer, Connection, is_local
from steersman.settings import Settings

_LONGEST_SPREAD_S = 0.5


@fact
class ChatSettings:
    """How an endpoint is asked, and how patiently."""

    temperature: float | None = 0.0
    """None leaves it out, for models that take none."""
    max_tokens: int | None = 1024
    """Of an answer; None leaves it out."""
    timeout_s: float = 60.0
    """For the connection, for every read, and for the body as a whole."""
    retries: int = 4
    """After the first try, where the endpoint is busy (429), broken (5xx), slow or out of reach."""
    pause_s: float = 0.5
    """Before the first retry; twice as long before each further one, give or take a half. `Retry-After` goes first."""
    longest_pause_s: float = 60.0
    """No pause is longer. An endpoint that asks for more is given up."""
    concurrency: int = 8
    """Requests at once."""

    def __post_init__(self) -> None:
        least: dict[str, float] = {"temperature": 0, "max_tokens": 1, "timeout_s": 0.001, "retries": 0}
        least |= {"pause_s": 0, "longest_pause_s": 0, "concurrency": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= low):
                raise EndpointError(f"chat settings: {name} must be {low:g} or more, not {value}")


@fact
class Usage:
    """What an endpoint was asked so far."""

    calls: int = 0
    """Answers that came over the network."""
    cached: int = 0
    """Answers that were on disk."""
    retries: int = 0
    failed: int = 0
    """Chats that stayed without an answer."""
    prompt_tokens: int = 0
    """As the endpoint counts them, where it does."""
    completion_tokens: int = 0


class Endpoint:
    """A chat model behind an address: called with messages, it answers text. Safe to share between threads."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None = None,
        settings: ChatSettings | None = None,
        cache: Path | None = None,
    ) -> None:
        """Check what is given; nothing is sent yet.

        Args:
            base_url: such as `http://localhost:8080/v1`.
            model: the name that the endpoint knows it by.
            key: sent as a bearer token; None sends none.
            settings: of every request.
            cache: folder of answers, found again by address, model, messages and settings; None keeps none.

        Raises:
            EndpointError: an address, name or key that cannot be used.
        """
        if not model.strip():
            raise EndpointError("the endpoint's model has no name; set STEERSMAN_LLM_MODEL")
        self.settings = settings or ChatSettings()
        self.model, self.cache = model, cache
        self._connection = Connection(base_url, key, self.settings.timeout_s)
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    @classmethod
    def from_settings(cls, settings: Settings, chat: ChatSettings | None = None) -> Self:
        """The endpoint that the environment names; its answers are kept below the cache folder.

        Raises:
            EndpointError: none is named, or it is on another machine while offline mode is on.
        """
        url, model = settings.llm_url, settings.llm_model
        if url is None or model is None:
            names = {"STEERSMAN_LLM_URL": url, "STEERSMAN_LLM_MODEL": model}
            missing = " and ".join(name for name, value in names.items() if value is None)
            raise EndpointError(
                f"no LLM endpoint is set up: set {missing} (an OpenAI-compatible address such as http://localhost:8080/v1; "
                "the model's name there), and STEERSMAN_LLM_KEY where it wants a key"
            )
        if settings.offline and not is_local(url):
            raise EndpointError(
                "the LLM endpoint is on another machine, and offline mode is on (STEERSMAN_OFFLINE or HF_HUB_OFFLINE); "
                "switch it off, or name an endpoint on this machine"
            )
        return cls(url, model, key=settings.llm_key, settings=chat, cache=settings.cache / "llm")

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, model={self.model!r})"

    @property
    def url(self) -> str:
        """Where requests go."""
        return self._connection.url

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        with self._lock:
            return Usage(**self._counts)

    def __call__(self, messages: Messages) -> str:
        """The text of the answer to a chat, from the cache where it was asked before.

        Raises:
            EndpointError: the endpoint refuses, or cannot be reached after all retries: one line, without the key.
            StorageError: the disk refuses to keep the answer.
        """
        asked = self._request(messages)
        kept = self._kept(asked)
        if kept is not None:
            self._count(cached=1)
            return kept
        answer = self._insisted(json.dumps(asked).encode())
        self._count(calls=1, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        if self.cache is not None:
            write_bytes(
                self._place(self.cache, asked),
                json.dumps({"url": self.url, "request": asked, "reply": answer.text}).encode(),
            )
        return answer.text

    def forget(self, messages: Messages) -> None:
        """Remove a kept answer, so that the same chat is asked anew; does nothing where none is kept."""
        if self.cache is not None:
            with contextlib.suppress(OSError):
                self._place(self.cache, self._request(messages)).unlink(missing_ok=True)

    def many(self, chats: Sequence[Messages]) -> list[str | EndpointError]:
        """Answers to several chats, asked at once, in order; where one could not be had, its error.

        Raises:
            StorageError: the disk refuses to keep an answer.
        """

        def ask(messages: Messages) -> str | EndpointError:
            try:
                return self(messages)
            except EndpointError as error:
                return error

        return in_parallel(ask, chats, self.settings.concurrency)

    def _request(self, messages: Messages) -> dict[str, Any]:
        chosen = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        said = {name: value for name, value in chosen.items() if value is not None}
        return {"model": self.model, "messages": [dict(message) for message in messages], **said}

    def _insisted(self, body: bytes) -> Answer:
        """The answer, asked for until it comes or there is no hope."""
        tries = 0
        while True:
            found = self._connection.post(body)
            tries += 1
            if isinstance(found, Answer):
                return found
            too_long = found.wait_s is not None and found.wait_s > self.settings.longest_pause_s
            if not found.again or too_long or tries > self.settings.retries:
                self._count(failed=1)
                why = found.why + (f" and asks to wait {found.wait_s:.0f} s" if too_long else "")
                why += f", {tries} tries" if tries > 1 else ""
                raise EndpointError(f"{self.url} {why}; {found.fix}")
            self._count(retries=1)
            time.sleep(self._pause_s(tries, found.wait_s))

    def _pause_s(self, tries: int, wait_s: float | None) -> float:
        # Uneven, so that those who were sent away together do not come back together.
        grown: float = self.settings.pause_s * 2.0 ** min(tries - 1, 30) * random.uniform(0.5, 1.5)
        return min(self.settings.longest_pause_s, grown) if wait_s is None else wait_s + min(_LONGEST_SPREAD_S, grown)

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                self._counts[name] = self._counts.get(name, 0) + value

    def _place(self, cache: Path, asked: dict[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps([self.url, asked], sort_keys=True).encode()).hexdigest()
        return cache / name[:2] / f"{name}.json"

    def _kept(self, asked: dict[str, Any]) -> str | None:
        """The answer on disk; None where there is none, or one that is damaged: it is asked for again then."""
        if self.cache is None:
            return None
        try:
            found = json.loads(self._place(self.cache, asked).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        same = isinstance(found, dict) and (found.get("url"), found.get("request")) == (self.url, asked)
        return found["reply"] if same and isinstance(found.get("reply"), str) else None
