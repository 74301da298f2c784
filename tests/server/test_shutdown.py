"""Ending: running streams finish, new requests are refused, jobs go back, and a second signal ends it at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from tests.server.rig import Served, app_over, error_of, serving, settings_in

from steersman.models.language_model import LanguageModel
from steersman.store.store import Store

CHAT = {"model": "default", "messages": [{"role": "user", "content": "Hello"}]}


def _wait(what: Any, patience_s: float = 20.0) -> None:
    until = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def go_on() -> threading.Event:
    return threading.Event()


@pytest.fixture
def streaming(app: FastAPI, store: Store, go_on: threading.Event) -> Iterator[Served]:
    """The app behind a real port, with a stream that goes on until a test says so."""

    @app.get("/stream")
    def stream() -> StreamingResponse:
        def pieces() -> Iterator[bytes]:
            yield b"begun\n"
            go_on.wait(20)
            yield b"ended\n"

        return StreamingResponse(pieces())

    @app.get("/forever/events")
    def events() -> StreamingResponse:
        async def pieces() -> Any:
            import anyio

            while True:
                yield b"event\n"
                await anyio.sleep(0.02)

        return StreamingResponse(pieces())

    with serving(app, settings_in(store.folder, grace_s=20.0)) as made:
        yield made


def test_a_running_stream_finishes_and_new_work_is_refused(streaming: Served, go_on: threading.Event) -> None:
    with streaming.client() as client, streaming.client() as other, client.stream("GET", "/stream") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "begun"
        assert other.get("/readyz").status_code == 200
        streaming.end()
        _wait(lambda: other.get("/readyz").status_code == 503)
        error_of(other.post("/v1/chat/completions", json=CHAT), 503)
        assert other.get("/healthz").status_code == 200
        assert streaming.thread.is_alive()
        go_on.set()
        assert list(lines) == ["ended"]
    streaming.thread.join(10)
    assert not streaming.thread.is_alive()
    with pytest.raises(httpx2.ConnectError):
        streaming.client().get("/healthz")


def test_who_only_listens_is_sent_away(streaming: Served) -> None:
    with streaming.client() as client, client.stream("GET", "/forever/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event"
        streaming.end()
        with pytest.raises(httpx2.RemoteProtocolError):
            list(lines)
    streaming.thread.join(5)
    assert not streaming.thread.is_alive()


def test_what_takes_longer_than_the_grace_is_cut_off(
    tiny: LanguageModel, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_over(tiny, store, grace_s=0.3)

    @app.get("/stuck")
    async def stuck() -> None:
        import anyio

        await anyio.sleep(60)

    with serving(app, settings_in(store.folder)) as served, served.client() as client:
        answers: list[httpx2.Response] = []

        def ask() -> None:
            answers.append(client.get("/stuck"))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.2)
        began = time.monotonic()
        served.end()
        served.thread.join(10)
        assert not served.thread.is_alive()
        assert time.monotonic() - began < 8
        asking.join(5)
    error_of(answers[0], 503)
    assert "Traceback" not in caplog.text


def test_generation_that_runs_is_finished(tiny: LanguageModel, store: Store) -> None:
    with serving(app_over(tiny, store), settings_in(store.folder)) as served, served.client() as client:
        body = {**CHAT, "stream": True, "max_tokens": 60, "stream_options": {"include_usage": True}}
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            served.end()
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert any(json.loads(line[6:]).get("usage") for line in rest[:-1])


# --- signals, in a process of its own

_PROGRAM = """
import sys
from pathlib import Path
from tests.tiny import tiny_model
from tests.engine.rig import make_engine
from steersman.server import logs, run
from steersman.server.settings import ServerSettings
settings = ServerSettings(folder=Path(sys.argv[1]), port=0, grace_s=float(sys.argv[2]), max_tokens=500, job_workers=1)
with logs.to_stderr(as_json=True):
    run.serve(settings, lambda: make_engine(tiny_model()), on_ready=lambda ready: print(ready.address, flush=True))
print("done", flush=True)
"""


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Any]:
    started = []

    def start(grace_s: float) -> tuple[subprocess.Popen[str], str]:
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(tmp_path / "store"), str(grace_s)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.communicate()
        return process, address

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_signal_lets_a_stream_finish_and_the_exit_code_is_0(spawn: Any) -> None:
    process, address = spawn(30)
    body = {**CHAT, "stream": True, "max_tokens": 300}
    with httpx2.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out.strip() == "done"
    assert "Traceback" not in err
    assert all(json.loads(line) for line in err.splitlines())


def test_a_second_signal_ends_it_at_once(spawn: Any) -> None:
    process, address = spawn(60)
    begun = threading.Event()

    def ask() -> None:
        try:
            with httpx2.stream(
                "POST",
                f"{address}/v1/chat/completions",
                json={**CHAT, "stream": True, "max_tokens": 500, "n": 16},
                timeout=60,
            ) as stream:
                for _ in stream.iter_lines():
                    begun.set()
        except httpx2.HTTPError:
            pass

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(30)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.wait(5)
    assert process.returncode == 128 + signal.SIGINT
    asking.join(10)
