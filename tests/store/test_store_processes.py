"""Several processes with one store, and one that is killed: each sees what the others kept, and nothing is ever half."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.store.rooms import Room

from steersman.errors import StorageError
from steersman.store.store import Store

_OPENER = """
import sys, time
from pathlib import Path
from tests.store.rooms import small_recipe
from steersman.store.store import Store
url, folder, name, start = sys.argv[1:]
time.sleep(max(0.0, float(start) - time.time()))
with Store.open(url or None, Path(folder)) as store:
    for n in range(10):
        store.jobs.create("ann", "fit", {"from": name, "n": n})
        store.recipes.add(name, small_recipe(f"r{n}"))
    claimed = []
    while (job := store.jobs.claim(name, 60)) is not None:
        claimed.append(job.id)
print(*claimed)
"""
_WORKER = """
import sys
from pathlib import Path
from tests.store.rooms import small_recipe
from steersman.store.store import Store
url, folder = sys.argv[1:]
store = Store.open(url or None, Path(folder))
n = 0
print("ready", flush=True)
while (job := store.jobs.claim("w", 60)) is not None:
    store.jobs.tell(job.id, "begun", {"n": n})
    made = {f"r{n}-{i}": small_recipe("x", 1.0 + 3 * n + i) for i in range(3)}
    vectors = {"kind": small_recipe("kind", 0.5 + n)} if job.kind == "fit-set" else {}
    store.jobs.finish(job.id, "w", {"n": n}, recipes=made, vectors=vectors)
    n += 1
"""


def _start(program: str, *arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )


def test_processes_that_open_a_new_store_at_once_share_it(room: Room) -> None:
    start = time.time() + 6
    started = [_start(_OPENER, room.url or "", str(room.folder), f"p{n}", str(start)) for n in range(2)]
    claimed: list[str] = []
    for process in started:
        said, wrong = process.communicate(timeout=120)
        assert process.returncode == 0, wrong
        claimed += said.split()
    with room.open() as store:
        jobs, total = store.jobs.list("ann", limit=1000)
        assert total == 20
        assert sorted(claimed) == sorted(job.id for job in jobs)
        assert all(job.attempts == 1 for job in jobs)
        assert [store.recipes.list(f"p{n}")[1] for n in range(2)] == [10, 10]
        assert store.sweep() == 0
        assert len(room.tensor_files()) == 1


def test_a_killed_worker_leaves_every_job_whole_or_not_begun(room: Room) -> None:
    with room.open() as store:
        for n in range(100):
            if n % 2:
                store.jobs.create("ann", "fit", {})
            else:
                given: dict[str, Any] = {
                    "model": "m",
                    "method": "lat",
                    "dimensions": {},
                    "prompts": None,
                    "request": {},
                }
                store.sets.create("ann", "set", **given)
        process = _start(_WORKER, room.url or "", str(room.folder))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0.05, 0.5))
        process.kill()
        process.communicate(timeout=60)
        _wait_until_it_is_over(store)
        jobs, _ = store.jobs.list("ann", limit=1000)
        recipes, n_recipes = store.recipes.list("ann", limit=1000)
        ready = [job for job in jobs if job.state == "ready"]
        assert len([job for job in jobs if job.state == "running"]) <= 1
        assert n_recipes == 3 * len(ready)
        kept = {record.id for record in recipes}
        for job in ready:
            found: Any = (job.result or {})["recipes"]
            assert kept >= set(found.values())
            for recipe_id in found.values():
                store.recipes.load("ann", recipe_id)
        for made in store.sets.list("ann", 1000)[0]:
            if made.state == "ready":
                assert [*store.sets.vectors("ann", made.id)] == ["kind"]
        assert store.sweep() <= 4  # What the last job had on disk, and no row refers to.
        for record in recipes:
            store.recipes.load("ann", record.id)


def _wait_until_it_is_over(store: Store) -> None:
    """A server notices a moment later that its client has died."""
    for _ in range(50):
        try:
            store.jobs.recover()
            return
        except StorageError:
            time.sleep(0.1)
