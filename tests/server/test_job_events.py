"""Watching jobs: so many streams and no more, asked for less and less often while nothing happens, ended with the job."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.server.rig import Served, app_over, error_of, key_for, serving, settings_in

from steersman.errors import Busy, NotFound
from steersman.models.language_model import LanguageModel
from steersman.server import events
from steersman.server.events import Watchers, told
from steersman.store.facts import JobEvent, JobRecord
from steersman.store.store import Store

AT = datetime(2030, 1, 1, tzinfo=UTC)


# --- how many


def test_each_key_has_its_places_and_all_together_theirs() -> None:
    watchers = Watchers(3, 2)
    with contextlib.ExitStack() as open_:
        for _ in range(2):
            open_.enter_context(watchers.seat("a"))
        with pytest.raises(Busy, match="this key watches 2 jobs") as caught, watchers.seat("a"):
            raise AssertionError
        assert not caught.value.is_callers
        with pytest.raises(KeyError), watchers.seat("b"):
            raise KeyError  # A stream that breaks gives its place back too.
        open_.enter_context(watchers.seat("b"))
        with pytest.raises(Busy, match="3 jobs are being watched"), watchers.seat("c"):
            raise AssertionError
    with contextlib.ExitStack() as open_:  # Without keys, everybody together may have all of them.
        for _ in range(3):
            open_.enter_context(watchers.seat(None))
        with pytest.raises(Busy), watchers.seat(None):
            raise AssertionError
    assert not watchers._open


@pytest.fixture
def guarded(tiny: LanguageModel, store: Store) -> Iterator[tuple[Served, str, str]]:
    """A server that lets three watch, two with one key, and two keys."""
    one, other = key_for(store), key_for(store)
    limits = {"max_watchers": 3, "max_watchers_per_key": 2}
    with serving(app_over(tiny, store, **limits), settings_in(store.folder)) as made:
        yield made, one, other


def test_a_stream_too_many_is_told_to_come_back(guarded: tuple[Served, str, str], store: Store) -> None:
    served, one, other = guarded
    job = store.jobs.create("ada", "fit", {})
    path = f"/v1/jobs/{job.id}/events"
    with served.client(one) as mine, served.client(other) as theirs, contextlib.ExitStack() as open_:
        streams = [open_.enter_context(mine.stream("GET", path)) for _ in range(2)]
        assert [stream.status_code for stream in streams] == [200, 200]
        assert "this key" in error_of(mine.get(path), 503)["message"]
        assert open_.enter_context(theirs.stream("GET", path)).status_code == 200
        assert "being watched" in error_of(theirs.get(path), 503)["message"]
        error_of(mine.get("/v1/jobs/job_nobody/events"), 503)
        streams[0].close()
        until = time.monotonic() + 10
        while (again := open_.enter_context(mine.stream("GET", path))).status_code != 200:
            assert time.monotonic() < until, "a place is not given back"
            time.sleep(0.05)
        store.jobs.cancel("ada", job.id)
        assert [line for line in again.iter_lines() if line.startswith("event:")] == ["event: ended"]
    with served.client(one) as mine:
        for _ in range(6):  # Streams that ended, and jobs that are not there, hold no place.
            assert mine.get(path).status_code == 200
            error_of(mine.get("/v1/jobs/job_nobody/events"), 404)


# --- how often


class Script:
    """Jobs of which one lives as it is written: how many new events each look finds; None is its end."""

    def __init__(self, *news: int | None) -> None:
        self._news, self.count, self.read = iter(news), 0, 0

    def standing(self, _owner: str, _job_id: str) -> tuple[str, int]:
        found = next(self._news)
        self.count += found or 0
        return ("ready" if found is None else "running"), self.count

    def events(self, _owner: str, _job_id: str, *, after: int, limit: int) -> list[JobEvent]:
        self.read += 1
        numbers = range(after + 1, min(self.count, after + limit) + 1)
        return [JobEvent(number=number, at=AT, kind="step", data={}) for number in numbers]

    def get(self, owner: str, job_id: str) -> JobRecord:
        return JobRecord(
            id=job_id, owner=owner, kind="fit", state="ready", request={}, result={}, error=None, attempts=1,
            created_at=AT, started_at=AT, ended_at=AT,
        )  # fmt: skip


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between looks, not waited for but written down."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(events.anyio, "sleep", sleep)
    return made


def lines(jobs: Any, after: int = 0) -> list[str]:
    async def work() -> list[str]:
        return [line async for line in told(jobs, "ann", "job_1", after, lambda: False)]

    return asyncio.run(work())


def numbers(said: list[str]) -> list[int]:
    return [int(line.split("\n")[0].removeprefix("id: ")) for line in said if line.startswith("id: ")]


def test_pauses_grow_while_nothing_happens_and_are_short_after_news(pauses: list[float]) -> None:
    script = Script(*[0] * 20, 1, 0, 0, 2, None)
    said = lines(script)
    assert numbers(said) == [1, 2, 3]
    assert json.loads(said[-1].split("data: ")[1])["state"] == "ready"
    quiet, after_news = pauses[:20], pauses[20:]
    assert all(0.3 < pause <= 2.0 for pause in quiet)
    assert quiet == sorted(quiet)
    assert quiet[8:] == [2.0] * 12
    assert after_news == [0.3, quiet[0], quiet[1], 0.3]
    assert script.read == 2  # Events are read where there are some.


def test_a_busy_job_is_not_looked_at_without_pause(pauses: list[float]) -> None:
    lines(Script(*[1] * 50, None))
    assert pauses == [0.3] * 50


@pytest.mark.parametrize("after", [0, 3, 1200, 5000])
def test_many_events_come_in_one_go_and_all_before_the_end(pauses: list[float], after: int) -> None:
    class Late(Script):
        """Ended already, with more events than are read at once."""

        def standing(self, _owner: str, _job_id: str) -> tuple[str, int]:
            return "ready", self.count

    script = Late()
    script.count = 1200
    said = lines(script, after)
    assert numbers(said) == list(range(after + 1, 1201))
    assert said[-1].startswith("event: ended\n")
    assert pauses == []


def test_a_job_that_is_removed_ends_the_stream(pauses: list[float]) -> None:
    class Gone(Script):
        def standing(self, owner: str, job_id: str) -> tuple[str, int]:
            if self.count:
                raise NotFound("gone")
            return super().standing(owner, job_id)

    assert numbers(lines(Gone(*itertools.repeat(1, 3)))) == [1]
