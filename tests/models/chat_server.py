"""A local server that speaks the documented chat-completions format, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-123"


@dataclass
class Say:
    """One response."""

    status: int = 200
    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    promise: int | None = None
    """A Content-Length other than the true one."""
    pieces_s: float | None = None
    """Send byte by byte, with this pause."""


def completion(content: object, **more: Any) -> Say:
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "choices": choices, "usage": usage}
    return Say(data=json.dumps({**body, **more}).encode())


@dataclass
class ChatServer:
    """What it answers, and what it was asked."""

    answer: Callable[[dict[str, Any]], Say] = field(default=lambda _: completion("yes"))
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""
    busiest: int = 0
    """Most requests at once."""
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answers(self, *says: Say) -> None:
        """One after the other; the last one again and again."""
        left = list(says)
        self.answer = lambda _: left.pop(0) if len(left) > 1 else left[0]


@contextlib.contextmanager
def serving() -> Iterator[ChatServer]:
    made = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with made.lock:
                made.at_once += 1
                made.busiest = max(made.busiest, made.at_once)
                made.asked.append((self.path, dict(self.headers), body))
                say = made.answer(body)
            try:
                time.sleep(say.wait_s)
            finally:
                # Before it is answered: the next request may be here before this thread goes on.
                with made.lock:
                    made.at_once -= 1
            self._say(say)

        def do_GET(self) -> None:
            made.asked.append((self.path, dict(self.headers), {}))
            self._say(completion("from elsewhere"))

        def _say(self, say: Say) -> None:
            # Whoever asked may have gone.
            with contextlib.suppress(ConnectionError):
                self.send_response(say.status)
                for name, value in say.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(say.data) if say.promise is None else say.promise))
                self.end_headers()
                if say.pieces_s is None:
                    self.wfile.write(say.data)
                    return
                for byte in say.data:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(say.pieces_s)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
