"""The events of a job as server-sent events, as they happen, and how many may be watched at once. Knows nothing of routes.

A stream asks the store now and then: soon while there is news, less and less often while there is none.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import anyio.to_thread

from steersman.errors import Busy, NotFound, StorageError
from steersman.server.jobs_bodies import EventView, JobView
from steersman.store.facts import ENDED, JobEvent, JobState
from steersman.store.jobs import Jobs

_SOON_S, _LATE_S, _SLOWER = 0.3, 2.0, 1.5
"""Between two looks: at first and after news, at most, and how much longer each pause is than the one before."""
_QUIET_S = 15.0
_STORAGE_PAUSE_S = 2.0
_RETRY_S = 5.0
_AT_ONCE = 500


class Watchers:
    """How many streams of events are open, in all and for each key. Lives on the event loop."""

    def __init__(self, most: int, most_per_key: int) -> None:
        """Let so many in. Callers without a key count in all only."""
        self._most, self._most_per_key = most, most_per_key
        self._open: Counter[str | None] = Counter()

    @contextlib.contextmanager
    def seat(self, key_id: str | None) -> Iterator[None]:
        """A place for one stream, free again at the end of the block.

        Raises:
            Busy: there is none.
        """
        if key_id is not None and self._open[key_id] >= self._most_per_key:
            raise Busy(
                f"this key watches {self._most_per_key} jobs already, the most; leave one of them, or ask for the job itself",
                retry_after_s=_RETRY_S,
            )
        if self._open.total() >= self._most:
            raise Busy(
                f"{self._most} jobs are being watched, the most; ask again in a moment, or ask for the job itself",
                retry_after_s=_RETRY_S,
            )
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]  # Keys come and go.


async def told(jobs: Jobs, owner: str, job_id: str, after: int, is_over: Callable[[], bool]) -> AsyncIterator[str]:
    """The events behind number `after` as lines, up to the job's end, or until `is_over`.

    A comment now and then keeps the connection from being taken for dead. While the database is away, nothing comes.
    """
    last_word, pause_s = time.monotonic(), _SOON_S
    while not is_over():
        try:
            state, events = await anyio.to_thread.run_sync(_look, jobs, owner, job_id, after)
            ended = state in ENDED and len(events) < _AT_ONCE
            job = await anyio.to_thread.run_sync(jobs.get, owner, job_id) if ended else None
        except StorageError:
            await anyio.sleep(_STORAGE_PAUSE_S)
            continue
        except NotFound:
            return  # Removed while somebody watched.
        for event in events:
            after = event.number
            yield _line(event.kind, EventView.of(event).model_dump_json(), event.number)
        if job is not None:
            yield _line("ended", JobView.of(job).model_dump_json())
            return
        if len(events) == _AT_ONCE:
            continue
        pause_s = _SOON_S if events else min(pause_s * _SLOWER, _LATE_S)
        if events:
            last_word = time.monotonic()
        elif time.monotonic() - last_word > _QUIET_S:
            last_word = time.monotonic()
            yield ": nothing new\n\n"
        await anyio.sleep(pause_s)


def _look(jobs: Jobs, owner: str, job_id: str, after: int) -> tuple[JobState, list[JobEvent]]:
    # The state first: what was told before the end is there when the end is seen.
    state, count = jobs.standing(owner, job_id)
    return state, jobs.events(owner, job_id, after=after, limit=_AT_ONCE) if count > after else []


def _line(kind: str, data: str, number: int | None = None) -> str:
    """One server-sent event; JSON has no line breaks of its own."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {' '.join(kind.split())}\ndata: {data}\n\n"
