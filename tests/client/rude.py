"""A server that answers byte for byte what a test says: one act per request, the last one again and again."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Act:
    """What is done to one request: pieces of bytes, with a pause between; then the connection ends."""

    pieces: tuple[bytes, ...]
    pause_s: float = 0.0
    is_cut: bool = False
    """End with a reset in place of an orderly end."""


@dataclass(frozen=True)
class Heard:
    """A request as it came in."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def answer(body: Any, status: int = 200, **headers: str) -> Act:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", "Connection: close"]
    given = {"Content_Type": "application/json", **headers}
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return Act(("\r\n".join(lines).encode() + b"\r\n\r\n" + data,))


def events(*pieces: bytes, pause_s: float = 0.0, is_whole: bool = True) -> Act:
    """A stream in chunked encoding, one chunk a piece; without its last chunk where it is not whole."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    return Act((head, *chunks, *([b"0\r\n\r\n"] if is_whole else [])), pause_s)


@dataclass
class Rude:
    """Serves acts on a free port of this machine, in a thread of its own."""

    acts: Sequence[Act]
    heard: list[Heard] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    self._play(connection)
                except OSError:  # The client hung up.
                    continue

    def _play(self, connection: socket.socket) -> None:
        self.heard.append(_read(connection))
        act = self.acts[min(len(self.heard), len(self.acts)) - 1]
        for piece in act.pieces:
            connection.sendall(piece)
            time.sleep(act.pause_s)
        if act.is_cut:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def _read(connection: socket.socket) -> Heard:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            raise OSError("no request")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = {entry.split(": ", 1)[0].lower(): entry.split(": ", 1)[1] for entry in lines}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    return Heard(line, headers, body)
