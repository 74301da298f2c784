"""A server in a process of its own for the server bench: started, given recipes, asked, ended."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server_load import Address, Told, ask

QUESTIONS = (
    "What is the internet?",
    "How do airplanes fly?",
    "Why is the sea salty?",
    "Tell me a story about a lighthouse.",
)
CLIENTS, STRENGTH, TOKENS = 16, 0.15, 128


class Server:
    """A server in a process of its own, and the recipes that were made on it."""

    def __init__(self, process: subprocess.Popen[bytes], address: Address) -> None:
        self.process, self.address = process, address
        self.features = tuple(range(100, 100 + CLIENTS))

    async def make_recipes(self) -> None:
        """One recipe a client, each a feature of the shipped SAE."""
        for feature in self.features:
            body = {"name": f"f{feature}", "features": {str(feature): 1.0}, "strength": STRENGTH}
            told = await ask(self.address, "POST", "/v1/recipes", body)
            if told.status != 201:
                sys.exit(f"a recipe was not made: {told.status} {told.body} {told.error}")

    async def warm_up(self) -> None:
        """All recipes once."""
        await asyncio.gather(*(self.chat(f"f{feature}", QUESTIONS[0], 8) for feature in self.features))

    async def chat(self, recipe: str | None, question: str, tokens: int, *, leave_after: int = 0) -> Told:
        """A streamed answer."""
        body: dict[str, Any] = {
            "model": f"default:{recipe}" if recipe else "default",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return await ask(self.address, "POST", "/v1/chat/completions", body, leave_after=leave_after)

    @property
    def rss_mib(self) -> float:
        """Resident memory of the server."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server on a free port, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "steersman", "serve", "--port", str(port), "--folder", str(folder)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        server = Server(process, Address("127.0.0.1", port))
        for _ in range(600):
            if process.poll() is not None or asyncio.run(ask(server.address, "GET", "/readyz")).status == 200:
                break
            time.sleep(0.1)
        if process.poll() is not None:
            sys.exit(f"the server ended: {(folder / 'server.log').read_text(encoding='utf-8')[-2000:]}")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
