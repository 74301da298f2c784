"""What a running server removes: jobs that ended long ago and folders; nothing that they made, nothing that goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.engine.rig import make_engine
from tests.store.rooms import Clock, small_recipe

from steersman.errors import NotFound, SteersmanError
from steersman.models.language_model import LanguageModel
from steersman.server import housekeeping
from steersman.server.housekeeping import Housekeeping
from steersman.server.jobs import JobRunner
from steersman.server.settings import ServerSettings
from steersman.store.store import Store

DAY_S = 86_400.0
OWNER = "ann"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dated(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A store by a clock that is moved."""
    with Store.open(None, tmp_path, clock=clock) as opened:
        yield opened


@pytest.fixture
def running(dated: Store, tiny: LanguageModel) -> Iterator[Callable[..., JobRunner]]:
    made: list[JobRunner] = []

    def make(keep_jobs_s: float) -> JobRunner:
        made.append(JobRunner(dated, make_engine(tiny), {}, workers=0, lease_s=0.3, keep_jobs_s=keep_jobs_s))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop(5.0)


def ended(store: Store) -> str:
    """A job that made a recipe, with an event and a folder."""
    job = store.jobs.create(OWNER, "fit", {})
    assert store.jobs.claim("w", 30)
    store.jobs.tell(job.id, "step", {})
    store.jobs.finish(job.id, "w", {}, recipes={"made": small_recipe("made")})
    folder(store, job.id).mkdir(parents=True)
    return job.id


def folder(store: Store, job_id: str) -> Path:
    return store.folder / "jobs" / job_id


def is_gone(store: Store, job_id: str) -> bool:
    try:
        store.jobs.get(OWNER, job_id)
    except NotFound:
        return True
    return False


def test_old_jobs_go_at_the_start_and_what_they_made_stays(
    dated: Store, clock: Clock, running: Callable[..., JobRunner]
) -> None:
    old = ended(dated)
    clock.move(29 * DAY_S)
    newer = ended(dated)
    running(30 * DAY_S)
    assert not is_gone(dated, old)
    clock.move(2 * DAY_S)
    folder(dated, old).mkdir(parents=True)
    running(30 * DAY_S)
    assert (is_gone(dated, old), is_gone(dated, newer)) == (True, False)
    assert not folder(dated, old).exists()
    assert {record.name for record in dated.recipes.list(OWNER)[0]} == {"made", "made-2"}
    assert dated.recipes.load(OWNER, "made").edits == small_recipe().edits
    assert dated.sweep() == 0


def test_old_jobs_go_while_the_server_runs(
    dated: Store, clock: Clock, running: Callable[..., JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_EVERY_S", 0.0)
    running(DAY_S)
    old = ended(dated)
    clock.move(2 * DAY_S)
    until = time.monotonic() + 20
    while not is_gone(dated, old):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not folder(dated, old).exists()


def test_nothing_is_removed_where_jobs_are_kept_for_ever(
    dated: Store, clock: Clock, running: Callable[..., JobRunner]
) -> None:
    old = ended(dated)
    clock.move(10_000 * DAY_S)
    running(0.0)
    assert not is_gone(dated, old)
    assert not folder(dated, old).exists()  # Of no use to anybody.


def test_a_folder_whose_worker_still_writes_is_left(dated: Store) -> None:
    one, other = ended(dated), ended(dated)
    Housekeeping(dated, 0.0).tidy({one})
    assert folder(dated, one).exists()
    assert not folder(dated, other).exists()


def test_more_than_go_at_once_go_one_batch_after_the_other(dated: Store, clock: Clock) -> None:
    for _ in range(3):
        ended(dated)
    clock.move(2 * DAY_S)
    chores = Housekeeping(dated, DAY_S)
    chores.when_due(())
    assert dated.jobs.list(OWNER)[1] == 3  # Not due for an hour.
    chores.tidy()
    ended(dated)
    clock.move(2 * DAY_S)
    chores.when_due(())  # Due at once, since there was something to remove.
    assert dated.jobs.list(OWNER)[1] == 0


@pytest.mark.parametrize("days", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_time_that_is_none_is_refused(tmp_path: Path, days: float) -> None:
    with pytest.raises(SteersmanError, match="keep_jobs_days"):
        ServerSettings(folder=tmp_path, keep_jobs_days=days)
