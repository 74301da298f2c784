"""Answers in OpenAI's form while they are written: server-sent events, a line for every piece.

Lines are put together by hand, since one is sent per token and caller; what came since the last time goes out in one write. Knows
nothing of how answers are made.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from steersman.engine.request import Chunk, Result
from steersman.server.errors import body_of, log, request_id
from steersman.server.metrics import Metrics
from steersman.server.openai_answers import Asked, ending, finish_reason, steering_told, usage
from steersman.server.openai_bodies import ChatBody
from steersman.server.pump import Feed, Piece

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_END = b"data: [DONE]\n\n"
_AT_ONCE = 64
"""Pieces that are put into words before others have their turn on the event loop."""


class ChunkLines:
    """The events of one streamed answer."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._is_chat = isinstance(asked.body, ChatBody)
        head = {
            "id": asked.id,
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": asked.created,
            "model": asked.body.model,
            "system_fingerprint": asked.fingerprint,
        }
        self._head = f"data: {_json(head)[:-1]}"
        self._tail = ',"usage":null}\n\n' if asked.body.includes_usage else "}\n\n"
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}
        self.results: dict[int, Result] = {}

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        """The events that tell of these pieces."""
        return "".join(self._piece(index, chunk) for index, chunk in pieces).encode()

    def last(self) -> bytes:
        """The counts, where they were asked for, and the end of the stream."""
        asked = self._asked
        if not asked.body.includes_usage:
            return _END
        results = [self.results[index] for index in sorted(self.results)]
        facts: dict[str, Any] = {"choices": [], "usage": usage(asked, results[: asked.count])}
        if asked.body.compare:
            facts["plain"] = {"choices": [], "usage": usage(asked, results[asked.count :])}
        return f"{self._head},{_json(facts)[1:]}\n\n".encode() + _END

    def _piece(self, index: int, chunk: Chunk) -> str:
        lines = []
        if index not in self._begun:
            self._begun.add(index)
            if self._is_chat:
                lines.append(self._line(index, '"delta":{"role":"assistant","content":""},"logprobs":null'))
        if chunk.text:
            text = _json(chunk.text)
            words = f'"delta":{{"content":{text}}}' if self._is_chat else f'"text":{text}'
            lines.append(self._line(index, f'{words},"logprobs":{self._logprobs(index, chunk)}'))
        if chunk.result is not None:
            lines.append(self._ending(index, chunk, has_text=bool(chunk.text)))
        return "".join(lines)

    def _ending(self, index: int, chunk: Chunk, *, has_text: bool) -> str:
        result = chunk.result
        assert result is not None
        self.results[index] = result
        # What was written without becoming text is told here.
        logprobs = "null" if has_text or not chunk.logprobs else self._logprobs(index, chunk)
        words = '"delta":{}' if self._is_chat else '"text":""'
        is_plain = index >= self._asked.count
        told = _json(ending(result) if is_plain else steering_told(self._asked, result))
        own = f',"steersman":{told}'
        choice = f'{words},"logprobs":{logprobs}'
        return self._line(index, choice, reason=finish_reason(result), own=own)

    def _line(self, index: int, words: str, *, reason: str | None = None, own: str = "") -> str:
        """One event about one choice; a plain one stands in `plain`, as in an answer that is not streamed."""
        is_plain = index >= self._asked.count
        number = index - self._asked.count if is_plain else index
        ended = "null" if reason is None else f'"{reason}"'
        choices = f'"choices":[{{"index":{number},{words},"finish_reason":{ended}}}]'
        if is_plain:
            return f'{self._head},"choices":[],"plain":{{{choices}{own}}}{self._tail}'
        return f"{self._head},{choices}{own}{self._tail}"

    def _logprobs(self, index: int, chunk: Chunk) -> str:
        asked = self._asked
        if asked.body.top is None:
            return "null"
        if self._is_chat:
            return _json(asked.texts.chat(chunk.logprobs))
        told, self._offsets[index] = asked.texts.completion(chunk.logprobs, self._offsets.get(index, 0))
        return _json(told)


class EventStream(Response):
    """Sends a feed as it comes; ends it when the caller hangs up."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, first: Sequence[Piece], lines: ChunkLines, metrics: Metrics, began: float) -> None:
        """Make the response to a feed whose first pieces are there.

        Args:
            feed: what is written.
            first: what it brought before the response was begun.
            lines: puts pieces into words.
            metrics: counts the tokens.
            began: when the request came, by `time.perf_counter`.
        """
        super().__init__()
        self._feed, self._first, self._lines = feed, first, lines
        self._metrics, self._began = metrics, began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        watcher = asyncio.create_task(_gone(receive))
        watcher.add_done_callback(lambda _: self._feed.cancel())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            self._metrics.first_token(time.perf_counter() - self._began)
            pieces: Sequence[Piece] | None = self._first
            while pieces is not None:
                for start in range(0, len(pieces), _AT_ONCE):  # A reader that was slow gets much at once.
                    await _write(send, self._lines.pieces(pieces[start : start + _AT_ONCE]))
                    if len(pieces) > _AT_ONCE:
                        await asyncio.sleep(0)
                try:
                    pieces = await anext(self._feed, None)
                except Exception as error:  # noqa: BLE001 - told to the caller; the log has what nobody meant to happen
                    await _write(send, _error(error, scope), more=False)
                    return
            if not watcher.done():
                await _write(send, self._lines.last(), more=False)
        finally:
            watcher.cancel()
            self._feed.cancel()
            for result in self._lines.results.values():
                self._metrics.tokens(result.prompt_tokens, len(result.token_ids))


async def _gone(receive: Receive) -> None:
    """Return when the caller has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _error(error: Exception, scope: Scope) -> bytes:
    """The event that tells of an error after the answer has begun."""
    log(error, scope)
    return f"data: {_json(body_of(error, request_id(scope)))}\n\n".encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
