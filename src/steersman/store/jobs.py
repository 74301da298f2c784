"""Jobs: claimed under a lease, told about in events, ended once. Knows nothing of what a job does, or of HTTP.

    pending --claim--> running --finish--> ready | --fail--> failed | --cancel--> cancelled
       ^                  |
       +---- release, or recover after the lease ran out

A worker that dies leaves a lease that runs out; `recover` makes its job pending again, or failed after too many attempts. A
worker's name belongs to one thread of one process, so that two never hold the same lease. Machines that share a database agree
on the time to within a lease.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from steersman.errors import Conflict, DataError
from steersman.steering.recipe import Recipe
from steersman.store.blobs import Blobs
from steersman.store.checks import check_text, is_keepable, lease_end, one_line, page, to_document
from steersman.store.database import Database, lock_names
from steersman.store.facts import ENDED, JobEvent, JobRecord, JobState
from steersman.store.job_rows import add_job, changed, end_job, find_job, held, job_event, job_record, new_job, no_job
from steersman.store.packing import Packed, pack
from steersman.store.recipes import free_name, insert_recipe
from steersman.store.tables import EventRow, JobRow, SetRow, SetVectorRow

Page = tuple[list[JobRecord], int]
"""Records, and how many there are in all."""
Events = list[JobEvent]
_FREE: Mapping[str, None] = {"worker": None, "lease_until": None}
_TRIES = 5
_MOST_AFTER = (1 << 31) - 1


class Jobs:
    """The jobs of one store."""

    def __init__(self, database: Database, blobs: Blobs, clock: Callable[[], datetime]) -> None:
        """Keep jobs in a database, the tensors of their results in `blobs`, by a clock that gives UTC."""
        self._database, self._blobs, self._clock = database, blobs, clock

    # --- for owners

    def create(self, owner: str, kind: str, request: Mapping[str, JsonValue]) -> JobRecord:
        """Add a job at the end of the queue.

        Raises:
            DataError: a kind, owner or request that cannot be kept.
            Busy: too many of the owner's jobs have not ended.
            StorageError: the database refused.
        """
        row = new_job(owner, kind, dict(request), self._clock())
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

    def ended(self, job_ids: Iterable[str]) -> frozenset[str]:
        """Those of these jobs, of all owners, that have ended; ids of no job are left out.

        Raises:
            StorageError: the database does not answer.
        """
        with self._database.reading() as session:
            ended = frozenset(session.scalars(select(JobRow.id).where(JobRow.state.in_(ENDED))))
        return ended & frozenset(job_ids)

    def counts(self) -> dict[str, int]:
        """How many jobs of all owners are in each state; a state that none is in is left out.

        Raises:
            StorageError: the database does not answer.
        """
        with self._database.reading() as session:
            rows = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            return {str(state): count for state, count in rows}

    # --- for workers

    def claim(self, worker: str, lease_s: float) -> JobRecord | None:
        """Take the oldest job that waits, or None. No two workers ever get the same one.

        Args:
            worker: who takes it: one thread of one process.
            lease_s: seconds after which others may take it again, unless `beat` renews.

        Raises:
            DataError: a lease of 0 seconds or less, or over a week.
            StorageError: the database refused.
        """
        now = self._clock()
        until = lease_end(now, lease_s)
        # On PostgreSQL, claims of others are skipped and not waited for; SQLite's writers come one after the other.
        oldest = (
            select(JobRow.number)
            .where(JobRow.state == "pending")
            .order_by(JobRow.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        values: dict[str, Any] = {
            "state": "running",
            "worker": check_text(worker, "worker", most=200),
            "lease_until": until,
            "attempts": JobRow.attempts + 1,
            "started_at": func.coalesce(JobRow.started_at, now),
        }
        with self._database.writing() as session:
            row = changed(session, (JobRow.number == oldest) & (JobRow.state == "pending"), values)
            return job_record(row) if row is not None else None

    def beat(self, job_id: str, worker: str, lease_s: float) -> bool:
        """Renew a lease. False: the job was cancelled or taken away; stop working on it."""
        until = lease_end(self._clock(), lease_s)
        with self._database.writing() as session:
            return changed(session, held(job_id, worker), {"lease_until": until}) is not None

    def finish(
        self,
        job_id: str,
        worker: str,
        result: Mapping[str, JsonValue],
        *,
        recipes: Mapping[str, Recipe] | None = None,
        vectors: Mapping[str, Recipe] | None = None,
    ) -> JobRecord:
        """End a job well and keep what it made: all of it or nothing.

        Args:
            job_id: the job.
            worker: who holds its lease.
            result: what is shown of it.
            recipes: kept for the job's owner, by the name wished for each; a name that is taken or will not do gets the nearest
                free one. `result["recipes"]` gets `{wished name: id}`.
            vectors: the recipe of each trait, of a job that fits a set.

        Raises:
            Conflict: the job was cancelled or the lease went to somebody else.
            DataError: the result cannot be kept as JSON, or vectors were given to a job without a set.
            StorageError: the disk or the database refused; the job runs on.
        """
        kept = {name: pack(recipe) for name, recipe in (recipes or {}).items()}
        traits = {trait: pack(recipe) for trait, recipe in (vectors or {}).items()}
        to_document(dict(result), "the job's result")  # Refused before anything is written.
        for packed in (*kept.values(), *traits.values()):
            if packed.tensors is not None:
                self._blobs.put(packed.tensors)
        for _ in range(_TRIES):
            try:
                return self._finish(job_id, worker, dict(result), kept, traits)
            except IntegrityError:
                continue  # Somebody gave a recipe the name that was free a moment ago.
        raise Conflict(f"job {job_id}: the names of its recipes are taken again and again; finish it once more")

    def _finish(
        self,
        job_id: str,
        worker: str,
        result: dict[str, JsonValue],
        kept: Mapping[str, Packed],
        traits: Mapping[str, Packed],
    ) -> JobRecord:
        now = self._clock()
        with self._database.holding_tensors() as session:
            row = session.scalars(select(JobRow).where(held(job_id, worker)).with_for_update()).first()
            if row is None:
                raise Conflict(
                    f"job {job_id} is not {worker!a}'s to finish: cancelled, or taken over after its lease ran out"
                )
            ids: dict[str, JsonValue] = {}
            lock_names(session)
            for wished, packed in kept.items():
                name = free_name(session, row.owner, wished)
                ids[wished] = insert_recipe(session, self._blobs, now, row.owner, name, packed).id
            if traits:
                self._keep_vectors(session, row, traits)
            row.result = to_document({**result, "recipes": ids} if kept else result, "the job's result")
            end_job(row, "ready", now)
            session.flush()
            return job_record(row)

    def _keep_vectors(self, session: Session, job: JobRow, traits: Mapping[str, Packed]) -> None:
        set_id = session.scalar(select(SetRow.id).where(SetRow.job_id == job.id))
        if set_id is None:
            raise DataError(f"job {job.id} of kind {job.kind!a} has no set to keep vectors for")
        for place, (trait, packed) in enumerate(traits.items()):
            tensors = self._blobs.put(packed.tensors) if packed.tensors is not None else None
            row = SetVectorRow(
                set_id=set_id, place=place, trait=to_document(trait, "trait"), facts=packed.facts, tensors=tensors
            )
            session.add(row)
        session.flush()

    def fail(self, job_id: str, worker: str, reason: str) -> bool:
        """End a job badly, with the reason in one line. False: it is not this worker's any more, and nothing was changed."""
        values = {"state": "failed", "error": one_line(reason), "ended_at": self._clock(), **_FREE}
        with self._database.writing() as session:
            return changed(session, held(job_id, worker), values) is not None

    def release(self, job_id: str, worker: str) -> bool:
        """Put a job back as if it had not been begun. False: it is not this worker's any more."""
        values = {"state": "pending", "attempts": JobRow.attempts - 1, **_FREE}
        with self._database.writing() as session:
            return changed(session, held(job_id, worker), values) is not None

    def recover(self, max_attempts: int = 3) -> int:
        """Put jobs back whose lease ran out; those begun `max_attempts` times fail. How many there were."""
        now = self._clock()
        late = (JobRow.state == "running") & (JobRow.lease_until <= now)
        with self._database.writing() as session:
            rows = session.scalars(
                select(JobRow).where(late).order_by(JobRow.number).with_for_update(skip_locked=True)
            ).all()
            for row in rows:
                if row.attempts >= max_attempts:
                    row.error = f"stopped {row.attempts} times while running"
                    end_job(row, "failed", now)
                else:
                    row.state, row.worker, row.lease_until = "pending", None, None
            return len(rows)

    def tell(self, job_id: str, kind: str, data: Mapping[str, JsonValue]) -> JobEvent:
        """Note that something happened in a job.

        Raises:
            NotFound: there is no such job.
            DataError: `data` cannot be kept as JSON.
        """
        text = to_document(dict(data), "the event")
        check_text(kind, "event kind")
        with self._database.writing() as session:
            # The count is the lock: two that tell at once get two numbers.
            row = (
                changed(session, JobRow.id == job_id, {"n_events": JobRow.n_events + 1})
                if is_keepable(job_id)
                else None
            )
            if row is None:
                raise no_job(job_id)
            made = EventRow(job_id=row.id, number=row.n_events, at=self._clock(), kind=kind, data=text)
            session.add(made)
            session.flush()
            return job_event(made)
