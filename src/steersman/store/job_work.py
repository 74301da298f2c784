"""Jobs as workers see them: claimed under a lease, told about in events, ended once. Knows nothing of what they do, or of HTTP.

    pending --claim--> running --finish--> ready | --fail--> failed | --cancel--> cancelled
       ^                  |
       +---- release, or recover after the lease ran out

A worker that dies leaves a lease that runs out; `recover` makes its job pending again, or failed after too many attempts. A
worker's name belongs to one thread of one process, so that two never hold the same lease. Machines that share a database agree
on the time to within a lease.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from steersman.errors import Conflict
from steersman.models.language_model import ModelRef
from steersman.steering.recipe import Recipe
from steersman.store.blobs import Blobs
from steersman.store.checks import check_text, is_keepable, lease_end, one_line, to_document
from steersman.store.database import Database
from steersman.store.facts import JobEvent, JobRecord
from steersman.store.job_results import keep_result
from steersman.store.job_rows import changed, end_job, fitting, held, job_event, job_record, no_job
from steersman.store.packing import Packed, pack
from steersman.store.tables import EventRow, JobRow

_FREE: Mapping[str, None] = {"worker": None, "lease_until": None}
_TRIES = 5


class JobWork:
    """What is done to the jobs of one store by those who work on them; `Jobs` adds what their owners do."""

    def __init__(self, database: Database, blobs: Blobs, clock: Callable[[], datetime]) -> None:
        """Keep jobs in a database, the tensors of their results in `blobs`, by a clock that gives UTC."""
        self._database, self._blobs, self._clock = database, blobs, clock

    def claim(self, worker: str, lease_s: float, *, model: ModelRef | None = None) -> JobRecord | None:
        """Take the oldest job that waits and fits, or None. No two workers ever get the same one.

        Args:
            worker: who takes it: one thread of one process.
            lease_s: seconds after which others may take it again, unless `beat` renews.
            model: the worker's; it gets the jobs that are for this model, and those that are for any. None: only the latter.

        Raises:
            DataError: a lease of 0 seconds or less, or over a week.
            StorageError: the database refused.
        """
        now = self._clock()
        until = lease_end(now, lease_s)
        # On PostgreSQL, claims of others are skipped and not waited for; SQLite's writers come one after the other.
        oldest = (
            select(JobRow.number)
            .where(JobRow.state == "pending", fitting(model))
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
        with self._database.holding_tensors() as session:
            row = session.scalars(select(JobRow).where(held(job_id, worker)).with_for_update()).first()
            if row is None:
                raise Conflict(
                    f"job {job_id} is not {worker!a}'s to finish: cancelled, or taken over after its lease ran out"
                )
            keep_result(session, self._blobs, row, self._clock(), result=result, kept=kept, traits=traits)
            return job_record(row)

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
