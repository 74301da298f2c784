"""A real server process, killed while it trains: what it promised comes, or fails with the reason; nothing is half there.

Run as a program, this file is that server: on the tiny model, with short leases.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.server.rig import settings_in
from tests.tiny import tiny_model

from steersman.models.language_model import LanguageModel
from steersman.models.residuals import measure_profile
from steersman.steering.personas import fit_trait, persona_pairs
from steersman.store.store import Store

pytestmark = pytest.mark.slow

LEASE_S = 1.0
N_TRAITS = 10
OPENINGS = [f"On day {n} of the long journey through the hills" for n in range(30)]
DIMENSIONS = {
    f"trait-{n}": {
        "positive_examples": [f"kind {n}", f"warm {n}", f"mild {n}"],
        "negative_examples": [f"cruel {n}", f"cold {n}", f"harsh {n}"],
    }
    for n in range(N_TRAITS)
}
SET = {"model_label": "long", "control_dimensions": DIMENSIONS, "prompt_list": OPENINGS}
SMALL = {"model_label": "small", "control_dimensions": {"a": [["kind"], ["cruel"]]}, "prompt_list": OPENINGS[:3]}
FIT = {
    "kind": "fit",
    "name": "before",
    "pairs": [
        {"prompt": f"What is {w}?", "positive": f"Ahoy, {w}!", "negative": f"It is {w}."} for w in ("rain", "ice")
    ],
}


class Process:
    """A server process and a client of it."""

    def __init__(self, folder: Path) -> None:
        address = folder.parent / "address"
        address.unlink(missing_ok=True)
        self.log = folder.parent / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.server.test_kill", str(folder), str(address)],
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.wait(address.exists, "start")
        self.client = httpx2.Client(base_url=address.read_text(), timeout=30)

    def wait(self, is_there: Callable[[], object], what: str, seconds: float = 90.0) -> None:
        until = time.monotonic() + seconds
        while not is_there():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < until, f"did not {what}: {self.log.read_text()[-2000:]}"
            time.sleep(0.02)

    def get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def post(self, path: str, body: Any, status: int = 202) -> Any:
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        return response.json()

    def wait_for_set(self, set_id: str, *states: str) -> Any:
        def there() -> bool:
            return self.get(f"/steerable-model/{set_id}/status")["status"] in states

        self.wait(there, f"become {states}")
        return self.get(f"/steerable-model/{set_id}/status")

    def kill(self) -> None:
        """Without a word, as the kernel does when memory runs out."""
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(10) == -signal.SIGKILL
        self.client.close()

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []

    def begin() -> Process:
        started.append(Process(tmp_path / "server"))
        return started[-1]

    yield begin
    for each in started:
        each.end()


def _is_begun(server: Process, job_id: str, attempt: int) -> bool:
    job = server.get(f"/v1/jobs/{job_id}")
    assert job["state"] in ("pending", "running"), "it was over before it could be killed"
    return bool(job["state"] == "running" and job["attempts"] == attempt)


def test_what_a_killed_server_promised_comes(start: Callable[[], Process], tmp_path: Path, tiny: LanguageModel) -> None:
    server = start()
    fitted = server.post("/v1/jobs", FIT)["id"]
    server.wait(lambda: server.get(f"/v1/jobs/{fitted}")["state"] == "ready", "fit")
    recipe = server.get("/v1/recipes/before")
    long = server.post("/steerable-model", SET)["id"]
    job = server.get("/v1/jobs?kind=fit-set")["data"][0]["id"]
    server.wait(lambda: _is_begun(server, job, 1), "begin")
    server.wait(lambda: len(list((tmp_path / "server" / "jobs" / job).glob("trait-*.json"))) >= 2, "fit two traits")
    small = server.post("/steerable-model", SMALL)["id"]
    server.kill()  # In the middle of one set, right behind the promise of another.

    server = start()
    assert server.get("/v1/recipes/before") == recipe
    for set_id in (long, small):
        assert server.wait_for_set(set_id, "ready", "failed") == {"id": set_id, "status": "ready"}
    assert server.get(f"/v1/jobs/{job}")["attempts"] == 2
    body = {"model": long, "prompt": "Go on.", "control_settings": {"trait-3": 2}, "settings": {"max_new_tokens": 8}}
    assert server.post("/completions", body, 200)["model_id"] == long
    server.end()
    with Store.open(None, tmp_path / "server") as store:
        vectors = store.sets.vectors("local", long)
        assert store.recipes.load("local", "before").method == "caa"
    assert list(vectors) == list(DIMENSIONS)
    for trait in ("trait-0", f"trait-{N_TRAITS - 1}"):  # Fitted before the end, and after it.
        sides = DIMENSIONS[trait]
        pairs = persona_pairs(sides["positive_examples"], sides["negative_examples"], OPENINGS)
        wanted = fit_trait(tiny, pairs, profile=measure_profile(tiny), name=trait)
        assert vectors[trait].edits == wanted.edits
    assert not (tmp_path / "server" / "jobs" / job).exists()


def test_a_server_killed_three_times_by_the_same_job_gives_it_up(start: Callable[[], Process]) -> None:
    server = start()
    long = server.post("/steerable-model", SET)["id"]
    job = server.get("/v1/jobs?kind=fit-set")["data"][0]["id"]
    for attempt in (1, 2, 3):
        server.wait(functools.partial(_is_begun, server, job, attempt), f"begin attempt {attempt}")
        server.kill()
        server = start()
    told = server.wait_for_set(long, "ready", "failed")
    assert told["status"] == "failed"
    assert "3 times" in told["error"]
    small = server.post("/steerable-model", SMALL)["id"]
    assert server.wait_for_set(small, "ready", "failed")["status"] == "ready"


def _main(folder: Path, address: Path) -> None:
    import torch

    from steersman.engine.engine import Engine
    from steersman.files import write_bytes
    from steersman.server import parts
    from steersman.server.jobs import JobRunner
    from steersman.server.run import serve

    torch.set_num_threads(1)
    parts.JobRunner = functools.partial(JobRunner, lease_s=LEASE_S)  # type: ignore[attr-defined, assignment, misc]
    model = tiny_model("llama")
    serve(
        settings_in(folder, job_workers=1, port=0),
        lambda: Engine(model, profile=measure_profile(model)),
        on_ready=lambda ready: write_bytes(address, ready.address.encode()),
    )


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
