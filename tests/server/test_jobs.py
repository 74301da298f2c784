"""The runner: every job ends once, whatever happens to the worker, the store or the work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import update
from tests.tiny import tiny_model

from steersman.engine.engine import Engine
from steersman.errors import DataError, StorageError
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import measure_profile
from steersman.server import housekeeping
from steersman.server.job_kinds.desk import Desk, Done, Kind, as_json
from steersman.server.jobs import JobRunner
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector
from steersman.store.facts import ENDED, JobRecord, JobState
from steersman.store.store import Store
from steersman.store.tables import JobRow

OWNER = "ann"
RECIPE = Recipe(name="made", edits=(Add(layer=1, vector=Vector([1.0] * 32), strength=0.1),))


@dataclass
class Steps:
    """Tells one event after another, until it may go on."""

    go_on: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    runs: int = 0

    def run(self, job: JobRecord, desk: Desk) -> Done:
        self.runs += 1
        desk.tell("begun", {"attempt": job.attempts})
        self.began.set()
        try:
            while not self.go_on.is_set():
                time.sleep(0.01)
                desk.tell("step", {})
        finally:
            self.left.set()
        return Done({"said": "done"}, recipes={"made": RECIPE})


@dataclass(frozen=True)
class Raises:
    error: Exception

    def run(self, job: JobRecord, desk: Desk) -> Done:
        desk.folder.mkdir(parents=True)
        (desk.folder / "half").write_text("half")
        raise self.error


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(None, tmp_path) as opened:
        yield opened


@pytest.fixture
def make(store: Store, tiny: LanguageModel) -> Iterator[Callable[..., JobRunner]]:
    made: list[JobRunner] = []

    def runner(kind: Kind, *, lease_s: float = 30.0, workers: int = 1, model: LanguageModel | None = None) -> JobRunner:
        model = model or tiny
        engine = Engine(model, profile=measure_profile(model))
        made.append(JobRunner(store, engine, {"work": kind}, workers=workers, lease_s=lease_s))
        return made[-1]

    yield runner
    for each in made:
        each.stop(5.0)


def wait(store: Store, job_id: str, *states: JobState, seconds: float = 20.0) -> JobRecord:
    until = time.monotonic() + seconds
    while (job := store.jobs.get(OWNER, job_id)).state not in (states or ENDED):
        assert time.monotonic() < until, f"still {job.state}"
        time.sleep(0.01)
    return job


def test_a_job_is_done_and_what_it_made_is_kept(store: Store, make: Callable[..., JobRunner]) -> None:
    kind = Steps()
    kind.go_on.set()
    runner = make(kind)
    runner.start()
    job = store.jobs.create(OWNER, "work", {})
    runner.wake()
    done = wait(store, job.id)
    assert (done.state, done.attempts, done.error) == ("ready", 1, None)
    assert done.result is not None
    [recipe_id] = done.result["recipes"].values()  # type: ignore[union-attr]
    assert store.recipes.load(OWNER, str(recipe_id)).edits == RECIPE.edits
    assert [event.kind for event in store.jobs.events(OWNER, job.id)] == ["begun"]


@pytest.mark.parametrize("n_workers", [1, 3])
def test_jobs_are_done_in_their_order_and_each_once(
    store: Store, make: Callable[..., JobRunner], n_workers: int
) -> None:
    kind = Steps()
    kind.go_on.set()
    jobs = [store.jobs.create(OWNER, "work", {}) for _ in range(6)]
    make(kind, workers=n_workers).start()
    ended = [wait(store, job.id) for job in jobs]
    assert kind.runs == 6
    begun = [job.started_at for job in ended if job.started_at]
    assert n_workers > 1 or begun == sorted(begun)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(DataError("the pairs\n are bad"), "the pairs are bad"), (KeyError("secret"), "internal error")],
    ids=["ours", "bug"],
)
def test_a_job_that_fails_says_why_in_one_line(
    store: Store,
    make: Callable[..., JobRunner],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    job = store.jobs.create(OWNER, "work", {})
    with caplog.at_level(logging.INFO):
        make(Raises(error)).start()
        failed = wait(store, job.id)
        assert failed.state == "failed"
        assert failed.error is not None
        assert failed.error.startswith(reason)
        assert "secret" not in failed.error
        assert "\n" not in failed.error
        folder = store.folder / "jobs" / job.id
        until = time.monotonic() + 5
        while folder.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert not folder.exists()
    traced = [record for record in caplog.records if record.exc_info]
    assert bool(traced) == isinstance(error, KeyError)


def test_a_kind_that_nobody_knows_fails(store: Store, make: Callable[..., JobRunner]) -> None:
    job = store.jobs.create(OWNER, "wrok", {})
    make(Steps()).start()
    assert "no jobs of kind 'wrok'" in str(wait(store, job.id).error)


def test_two_servers_with_different_models_each_do_the_jobs_of_their_own(
    store: Store, tiny: LanguageModel, make: Callable[..., JobRunner]
) -> None:
    other = tiny_model(seed=7)
    kinds, runners = (Steps(), Steps()), []
    for kind, model in zip(kinds, (tiny, other), strict=True):
        kind.go_on.set()
        runners.append(make(kind, workers=2, model=model))
    mine, others = runners
    assert mine.model.matches(tiny.ref)
    assert not mine.model.matches(other.ref)
    mine.start()
    for_other = [store.jobs.create(OWNER, "work", {}, model=others.model) for _ in range(3)]
    for_mine = [store.jobs.create(OWNER, "work", {}, model=mine.model) for _ in range(3)]
    mine.wake()
    assert {wait(store, job.id).state for job in for_mine} == {"ready"}
    assert (kinds[0].runs, kinds[1].runs) == (3, 0)
    assert {store.jobs.get(OWNER, job.id).state for job in for_other} == {"pending"}
    others.start()
    assert {wait(store, job.id).state for job in for_other} == {"ready"}
    assert (kinds[0].runs, kinds[1].runs) == (3, 3)


@pytest.mark.parametrize("told", [True, False], ids=["told", "by the beat"])
def test_a_cancelled_job_stops(store: Store, make: Callable[..., JobRunner], told: bool) -> None:
    kind = Steps()
    runner = make(kind, lease_s=0.6)
    runner.start()
    job = store.jobs.create(OWNER, "work", {})
    runner.wake()
    assert kind.began.wait(10)
    store.jobs.cancel(OWNER, job.id)
    if told:
        runner.drop(job.id)
    assert kind.left.wait(10)
    assert wait(store, job.id).state == "cancelled"
    assert store.recipes.list(OWNER)[1] == 0


def test_stopping_gives_jobs_back_as_if_they_had_not_begun(store: Store, make: Callable[..., JobRunner]) -> None:
    kind = Steps()
    runner = make(kind)
    runner.start()
    job = store.jobs.create(OWNER, "work", {})
    runner.wake()
    assert kind.began.wait(10)
    runner.stop(10.0)
    given_back = store.jobs.get(OWNER, job.id)
    assert (given_back.state, given_back.attempts) == ("pending", 0)
    kind.go_on.set()
    make(kind).start()
    done = wait(store, job.id)
    assert (done.state, done.attempts) == ("ready", 1)


def test_work_that_does_not_listen_is_given_back_after_the_grace(store: Store, make: Callable[..., JobRunner]) -> None:
    class Deaf(Steps):
        def run(self, job: JobRecord, desk: Desk) -> Done:
            self.began.set()
            self.go_on.wait(20)
            return Done({})

    kind = Deaf()
    runner = make(kind)
    runner.start()
    job = store.jobs.create(OWNER, "work", {})
    runner.wake()
    assert kind.began.wait(10)
    began = time.monotonic()
    runner.stop(0.2)
    assert runner.is_computing
    runner.stop(60)  # An orderly end asks twice; it has waited already.
    assert time.monotonic() - began < 5
    assert store.jobs.get(OWNER, job.id).state == "pending"
    kind.go_on.set()  # It ends all the same, but nobody takes what it brings.
    time.sleep(0.2)
    assert store.jobs.get(OWNER, job.id).state == "pending"


def test_what_a_dead_process_left_is_taken_up_again(store: Store, make: Callable[..., JobRunner]) -> None:
    kind = Steps()
    kind.go_on.set()
    job = store.jobs.create(OWNER, "work", {})
    assert store.jobs.claim("dead", 0.3)
    make(kind, lease_s=0.6).start()
    done = wait(store, job.id)
    assert (done.state, done.attempts) == ("ready", 2)


def test_a_job_that_brings_the_process_down_thrice_fails(store: Store, make: Callable[..., JobRunner]) -> None:
    job = store.jobs.create(OWNER, "work", {})
    for _ in range(2):
        assert store.jobs.claim("dead", 0.01)
        time.sleep(0.05)
        store.jobs.recover()
    assert store.jobs.claim("dead", 0.01)
    time.sleep(0.05)
    make(Steps()).start()
    failed = wait(store, job.id)
    assert failed.state == "failed"
    assert "3 times" in str(failed.error)


def test_folders_of_jobs_that_ended_unattended_are_removed_at_the_start(
    store: Store, make: Callable[..., JobRunner]
) -> None:
    cancelled, waiting = store.jobs.create(OWNER, "work", {}), store.jobs.create(OWNER, "work", {})
    store.jobs.cancel(OWNER, cancelled.id)
    for name in (cancelled.id, waiting.id, "job_nobody", "mine"):
        (store.folder / "jobs" / name).mkdir(parents=True)
    make(Steps(), workers=0).start()
    assert {path.name for path in (store.folder / "jobs").iterdir()} == {waiting.id, "job_nobody", "mine"}


def test_long_work_keeps_its_lease(store: Store, make: Callable[..., JobRunner]) -> None:
    class Silent(Steps):
        def run(self, job: JobRecord, desk: Desk) -> Done:
            self.runs += 1
            time.sleep(2.0)
            return Done({})

    kind = Silent()
    job = store.jobs.create(OWNER, "work", {})
    for _ in range(2):
        make(kind, lease_s=0.9).start()
    assert wait(store, job.id).attempts == 1
    assert kind.runs == 1


def test_a_database_that_is_away_for_a_while_costs_nothing(
    store: Store, make: Callable[..., JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = threading.Event()
    for name in ("claim", "tell", "finish", "beat"):
        real = getattr(store.jobs, name)

        def called(*args: object, real: Callable[..., object] = real, **kwargs: object) -> object:
            if away.is_set():
                raise StorageError("the database does not answer")
            return real(*args, **kwargs)

        monkeypatch.setattr(store.jobs, name, called)
    kind = Steps()
    runner = make(kind)
    runner.start()
    job = store.jobs.create(OWNER, "work", {})
    runner.wake()
    assert kind.began.wait(10)
    away.set()
    time.sleep(0.2)
    n = len(store.jobs.events(OWNER, job.id))
    kind.go_on.set()
    time.sleep(0.3)
    assert store.jobs.get(OWNER, job.id).state == "running"
    away.clear()
    assert wait(store, job.id).state == "ready"
    assert len(store.jobs.events(OWNER, job.id)) > n
    assert store.recipes.list(OWNER)[1] == 1


def test_a_result_that_cannot_be_kept_fails_the_job(store: Store, make: Callable[..., JobRunner]) -> None:
    class Odd:
        def run(self, job: JobRecord, desk: Desk) -> Done:
            return Done({"text": "half \ud800 a character"})

    job = store.jobs.create(OWNER, "work", {})
    make(Odd()).start()
    failed = wait(store, job.id)
    assert failed.state == "failed"
    assert failed.error
    assert "internal" not in failed.error


def test_json_has_no_infinity_and_no_numbers_as_names() -> None:
    assert as_json({1: float("nan"), "a": (1, {2.5: float("inf")})}) == {"1": None, "a": [1, {"2.5": None}]}
    with pytest.raises(TypeError):
        as_json({"a": object()})


def test_two_workers_on_one_job_do_not_disturb_each_other(store: Store, make: Callable[..., JobRunner]) -> None:
    # A lease that ran out while the database was away: another server put the job back, and a second worker here took it.
    steps = Steps()
    runner = make(steps, workers=2)
    job = store.jobs.create(OWNER, "work", {})
    runner.start()
    assert steps.began.wait(10)
    with store._database.writing() as session:
        session.execute(update(JobRow).values(state="pending", worker=None, lease_until=None))
    until = time.monotonic() + 10
    while steps.runs < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert (steps.runs, steps.left.is_set()) == (2, False)
    steps.go_on.set()
    assert wait(store, job.id).state == "ready"
    again = store.jobs.create(OWNER, "work", {})
    runner.wake()
    assert wait(store, again.id).state == "ready"
    assert sum(thread.is_alive() for thread in runner._workers) == 2


def test_a_reason_does_not_say_where_things_are(store: Store, make: Callable[..., JobRunner]) -> None:
    job = store.jobs.create(OWNER, "work", {})
    make(Raises(StorageError("cannot write /home/ann/x: the disk is full"))).start()
    failed = wait(store, job.id)
    assert failed.state == "failed"
    assert "/home" not in str(failed.error)


def test_what_was_deleted_is_swept_while_the_server_runs(
    store: Store, make: Callable[..., JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.recipes.delete(OWNER, store.recipes.add(OWNER, RECIPE).id)
    monkeypatch.setattr(housekeeping, "_EVERY_S", 0.0)
    make(Steps(), lease_s=0.3).start()
    until = time.monotonic() + 10
    while list(store.folder.rglob("*.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    assert not list(store.folder.rglob("*.safetensors"))
