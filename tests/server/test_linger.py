"""An answer that comes before its request was read arrives whole, and nobody keeps a connection by sending on."""

from __future__ import annotations

import json
import socket
import time

import pytest
from tests.server.rig import Served

from steersman.server import linger

_LARGE = 8 << 20


def _connect(served: Served) -> socket.socket:
    return socket.create_connection(served.socket.getsockname(), timeout=20)


def _head(*headers: str, path: str = "/v1/jobs") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


def _rest(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the one answer there is, read until the connection ends."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("round_", range(3))
def test_who_sends_all_of_a_large_body_before_reading_gets_the_whole_refusal(served: Served, round_: int) -> None:
    with _connect(served) as connection:
        connection.sendall(_head("Content-Type: application/json", f"Content-Length: {_LARGE}") + b" " * _LARGE)
        time.sleep(0.05)  # Whatever would reset the connection has done so.
        status, body = _rest(connection)
    assert status == 413
    assert "larger than" in json.loads(body)["error"]["message"]


def test_a_large_body_in_chunks_does_too(served: Served) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with _connect(served) as connection:
        connection.sendall(_head("Content-Type: application/json", "Transfer-Encoding: chunked") + 128 * chunk)
        connection.sendall(b"0\r\n\r\n")
        status, body = _rest(connection)
    assert status == 413
    assert json.loads(body)["error"]["code"] is None


@pytest.mark.parametrize("path", ["/v1/jobs", "/nowhere"])
def test_a_caller_that_wants_the_connection_closed_gets_every_other_refusal(served: Served, path: str) -> None:
    with _connect(served) as connection:
        head = _head("Content-Type: text/plain", "Connection: close", f"Content-Length: {_LARGE}", path=path)
        connection.sendall(head + b" " * _LARGE)
        assert _rest(connection)[0] in (404, 415)


def test_nothing_is_asked_for_that_was_only_announced(served: Served) -> None:
    began = time.perf_counter()
    with _connect(served) as connection:
        head = ("Content-Type: application/json", f"Content-Length: {_LARGE}", "Expect: 100-continue")
        connection.sendall(_head(*head))
        assert _rest(connection)[0] == 413
    assert time.perf_counter() - began < linger._SECONDS


def test_who_stops_sending_has_the_answer_at_once_and_is_cut_off_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linger, "_SECONDS", 0.5)
    with _connect(served) as connection:
        connection.sendall(_head("Content-Type: application/json", f"Content-Length: {_LARGE}") + b" " * 1000)
        began = time.perf_counter()
        first = connection.recv(65536)
        assert first.startswith(b"HTTP/1.1 413")
        while connection.recv(65536):
            pass
    assert 0.3 < time.perf_counter() - began < 5


def test_who_never_stops_sending_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "_BYTES", 1 << 20)
    with _connect(served) as connection:
        connection.sendall(_head("Content-Type: application/json", f"Content-Length: {1 << 40}"))
        with pytest.raises(OSError, match=r"reset|pipe|abort"):
            _send_for_long(connection)


def _send_for_long(connection: socket.socket) -> None:
    for _ in range(4096):
        connection.sendall(b" " * 65536)
