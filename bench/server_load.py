"""What the server bench sends: requests over bare asyncio streams, so light that the load leaves the processors alone."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Told:
    """What came of a request."""

    status: int = 0
    text: str = ""
    tokens: int = 0
    """Of the answer, as the usage counts them."""
    first_s: float = 0.0
    """From sending to the first piece of text."""
    total_s: float = 0.0
    is_whole: bool = False
    """The stream ended as it should, or the body was complete."""
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is."""

    host: str
    port: int


async def ask(
    address: Address, method: str, path: str, body: dict[str, Any] | None = None, *, leave_after: int = 0
) -> Told:
    """Send one request and read the answer to its end.

    Args:
        address: of the server.
        method: GET, POST, ...
        path: with its query.
        body: sent as JSON.
        leave_after: close the connection after so many pieces of a stream; 0 stays to the end.
    """
    told, began = Told(), time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    except OSError as error:
        told.error = repr(error)
        return told
    try:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nConnection: close\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer.write(head.encode() + b"\r\n" + data)
        await writer.drain()
        told.status = int((await reader.readline()).split()[1])
        while line := (await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            told.headers[name.lower()] = value.strip()
        if told.headers.get("content-type", "").startswith("text/event-stream"):
            await _stream(reader, told, began, leave_after)
        else:
            rest = await reader.read()
            told.body = json.loads(_body(rest, told.headers)) if rest else None
            told.is_whole = True
    except (OSError, ValueError, IndexError, asyncio.IncompleteReadError) as error:
        told.error = repr(error)
    finally:
        writer.close()
        told.total_s = time.perf_counter() - began
    return told


async def _stream(reader: asyncio.StreamReader, told: Told, began: float, leave_after: int) -> None:
    """Read server-sent events; the lines between that frame the chunks are passed over."""
    parts: list[str] = []
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            told.is_whole = True
            break
        event = json.loads(line[6:])
        if "error" in event:
            told.error = str(event["error"])
            break
        if usage := event.get("usage"):
            told.tokens = usage["completion_tokens"]
        for choice in event.get("choices", ()):
            if piece := choice.get("delta", {}).get("content") or choice.get("text"):
                told.first_s = told.first_s or time.perf_counter() - began
                parts.append(piece)
        if leave_after and len(parts) >= leave_after:
            break
    told.text = "".join(parts)


def _body(rest: bytes, headers: dict[str, str]) -> bytes:
    """The body without the frames of chunked transfer."""
    if headers.get("transfer-encoding") != "chunked":
        return rest
    found = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        found, rest = found + rest[:length], rest[length + 2 :]
    return found
