"""Jobs as their owners see them: asked for, looked at, cancelled, and removed long after their end. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from pydantic import JsonValue
from sqlalchemy import delete, func, select

from steersman.errors import Conflict
from steersman.models.language_model import ModelRef
from steersman.store.checks import is_keepable, page
from steersman.store.facts import ENDED, JobEvent, JobRecord, JobState
from steersman.store.job_rows import add_job, end_job, find_job, job_event, job_record, new_job, no_job
from steersman.store.job_work import JobWork
from steersman.store.tables import EventRow, JobRow, SetRow

Page = tuple[list[JobRecord], int]
"""Records, and how many there are in all."""
Events = list[JobEvent]
_MOST_AFTER = (1 << 31) - 1
_MOST_AT_ONCE = 1_000


class Jobs(JobWork):
    """The jobs of one store."""

    def create(
        self, owner: str, kind: str, request: Mapping[str, JsonValue], *, model: ModelRef | None = None
    ) -> JobRecord:
        """Add a job at the end of the queue; `model` is the one that it is for, None any.

        Raises:
            DataError: a kind, owner, request or model's name that cannot be kept.
            Busy: too many of the owner's jobs have not ended.
            StorageError: the database refused.
        """
        row = new_job(owner, kind, dict(request), self._clock(), model)
        with self._database.writing() as session:
            add_job(session, row)
            return job_record(row)

    def get(self, owner: str, job_id: str) -> JobRecord:
        """A job as it stands.

        Raises:
            NotFound: the owner has none of this id.
        """
        with self._database.reading() as session:
            return job_record(find_job(session, owner, job_id))

    def list(
        self, owner: str, *, kind: str | None = None, state: JobState | None = None, limit: int = 20, offset: int = 0
    ) -> Page:
        """One page, the newest first, and how many there are in all.

        Raises:
            DataError: a limit over 1,000, or a negative number.
        """
        limit, offset = page(limit, offset)
        if not all(is_keepable(text or "") for text in (owner, kind, state)):
            return [], 0
        wanted = JobRow.owner == owner
        if kind is not None:
            wanted &= JobRow.kind == kind
        if state is not None:
            wanted &= JobRow.state == state
        with self._database.reading() as session:
            total = session.scalar(select(func.count()).select_from(JobRow).where(wanted)) or 0
            rows = session.scalars(
                select(JobRow).where(wanted).order_by(JobRow.number.desc()).limit(limit).offset(offset)
            )
            return [job_record(row) for row in rows], total

    def cancel(self, owner: str, job_id: str) -> JobRecord:
        """End a job that waits or runs; its worker learns of it at its next beat.

        Raises:
            NotFound: the owner has none of this id.
            Conflict: it has ended.
        """
        with self._database.writing() as session:
            row = find_job(session, owner, job_id, for_update=True)
            if row.state in ENDED:
                raise Conflict(f"job {job_id} has ended ({row.state}); there is nothing to cancel")
            end_job(row, "cancelled", self._clock())
            return job_record(row)

    def events(self, owner: str, job_id: str, *, after: int = 0, limit: int = 1_000) -> Events:
        """What happened in a job, in order, from the event after number `after` on.

        Raises:
            NotFound: the owner has none of this id.
            DataError: a limit over 1,000, or a negative number.
        """
        limit, _ = page(limit, 0)
        after = max(0, min(after, _MOST_AFTER))
        with self._database.reading() as session:
            job = find_job(session, owner, job_id)
            wanted = (EventRow.job_id == job.id) & (EventRow.number > after)
            return [
                job_event(row)
                for row in session.scalars(select(EventRow).where(wanted).order_by(EventRow.number).limit(limit))
            ]

    def standing(self, owner: str, job_id: str) -> tuple[JobState, int]:
        """A job's state, and the number of its last event; reads no more of it, so it may be asked often.

        Raises:
            NotFound: the owner has none of this id.
        """
        found = None
        if is_keepable(owner) and is_keepable(job_id):
            wanted = select(JobRow.state, JobRow.n_events).where(JobRow.owner == owner, JobRow.id == job_id)
            with self._database.reading() as session:
                found = session.execute(wanted).first()
        if found is None:
            raise no_job(job_id)
        state: Any = found.state
        return state, found.n_events

    def ended(self, job_ids: Iterable[str]) -> frozenset[str]:
        """Those of these jobs, of all owners, that have ended; ids of no job are left out.

        Raises:
            StorageError: the database does not answer.
        """
        asked = [job_id for job_id in job_ids if is_keepable(job_id)]
        found = set[str]()
        with self._database.reading() as session:
            for at in range(0, len(asked), _MOST_AT_ONCE):
                wanted = JobRow.state.in_(ENDED) & JobRow.id.in_(asked[at : at + _MOST_AT_ONCE])
                found.update(session.scalars(select(JobRow.id).where(wanted)))
        return frozenset(found)

    def counts(self) -> dict[str, int]:
        """How many jobs of all owners are in each state; a state that none is in is left out.

        Raises:
            StorageError: the database does not answer.
        """
        with self._database.reading() as session:
            rows = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            return {str(state): count for state, count in rows}

    def prune(self, older_than_s: float) -> int:
        """Remove jobs of all owners that ended so long ago, the first of them first, with their events; how many.

        What they made stays, and so does a job that belongs to a set, for as long as the set does. At most 1,000 go at once, so
        that nobody waits long.

        Raises:
            StorageError: the database refused.
        """
        until = self._clock() - timedelta(seconds=older_than_s)
        old = (
            select(JobRow.number)
            .where(JobRow.state.in_(ENDED), JobRow.ended_at <= until, JobRow.id.not_in(select(SetRow.job_id)))
            .order_by(JobRow.number)
            .limit(_MOST_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        with self._database.writing() as session:
            numbers = session.scalars(old).all()
            session.execute(delete(JobRow).where(JobRow.number.in_(numbers)))
            return len(numbers)
