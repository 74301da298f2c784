"""Rows of jobs: made, found, changed in one statement, and turned into records. Knows nothing of who works on them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from steersman.errors import Busy, NotFound
from steersman.models.language_model import ModelRef
from steersman.store.checks import check_owner, check_text, from_document, is_keepable, to_document
from steersman.store.facts import ENDED, JobEvent, JobRecord, JobState
from steersman.store.tables import EventRow, JobRow

MOST_OPEN_JOBS = 100
"""Jobs of one owner that may wait or run; no caller shall fill the queue for all others."""
_ROOM_S = 30.0


def new_job(
    owner: str, kind: str, request: dict[str, JsonValue], now: datetime, model: ModelRef | None = None
) -> JobRow:
    """A row for a job that waits; `model` is the one that it is for, None any.

    Raises:
        DataError: a kind, owner, request or model's name that cannot be kept.
    """
    return JobRow(
        id=f"job_{secrets.token_hex(8)}",
        owner=check_owner(owner),
        kind=check_text(kind, "job kind"),
        state="pending",
        model_id=check_text(model.id, "model", most=500) if model is not None else None,
        model_config_hash=model.config_hash if model is not None else None,
        model_weights_hash=model.weights_hash if model is not None else None,
        request=to_document(request, "the request"),
        attempts=0,
        created_at=now,
        n_events=0,
    )


def add_job(session: Session, row: JobRow) -> None:
    """Put a new job into the queue, where its owner has room there.

    Raises:
        Busy: too many of the owner's jobs have not ended.
    """
    open_ = select(func.count()).where(JobRow.owner == row.owner, JobRow.state.not_in(ENDED))
    count = session.scalar(open_) or 0
    if count >= MOST_OPEN_JOBS:
        raise Busy(
            f"{count} of your jobs have not ended; wait for one of them, or cancel it",
            retry_after_s=_ROOM_S,
            is_callers=True,
        )
    session.add(row)
    session.flush()


def end_job(row: JobRow, state: JobState, now: datetime) -> None:
    """Mark a job as ended."""
    row.state, row.ended_at, row.worker, row.lease_until = state, now, None, None


def held(job_id: str, worker: str) -> ColumnElement[bool]:
    """The job, where it runs under this worker's lease."""
    return (JobRow.id == job_id) & (JobRow.worker == worker) & (JobRow.state == "running")


def fitting(model: ModelRef | None) -> ColumnElement[bool]:
    """The jobs that a worker with this model may take: those that are for it, and those that are for any."""
    for_any = JobRow.model_weights_hash.is_(None)
    if model is None:
        return for_any
    # As `ModelRef.matches`: the name is not compared.
    its_own = (JobRow.model_config_hash == model.config_hash) & (JobRow.model_weights_hash == model.weights_hash)
    return for_any | its_own


def changed(session: Session, which: ColumnElement[bool], values: Mapping[str, Any]) -> JobRow | None:
    """Change the one row that fits, in one statement, and give it as it is then."""
    change = update(JobRow).where(which).values(**values).returning(JobRow)
    return session.scalars(change, execution_options={"synchronize_session": False}).one_or_none()


def find_job(session: Session, owner: str, job_id: str, *, for_update: bool = False) -> JobRow:
    """The owner's job.

    Raises:
        NotFound: the owner has none of this id.
    """
    row = None
    if is_keepable(owner) and is_keepable(job_id):
        query = select(JobRow).where(JobRow.owner == owner, JobRow.id == job_id)
        row = session.scalars(query.with_for_update() if for_update else query).first()
    if row is None:
        raise no_job(job_id)
    return row


def no_job(job_id: str) -> NotFound:
    """What to raise where the owner has no such job."""
    return NotFound(f"you have no job {job_id[:100]!a}; list your jobs to see their ids")


def job_record(row: JobRow) -> JobRecord:
    """The row as it is handed out."""
    state: Any = row.state
    return JobRecord(
        id=row.id,
        owner=row.owner,
        kind=row.kind,
        state=state,
        request=from_document(row.request),
        result=from_document(row.result) if row.result is not None else None,
        error=row.error,
        attempts=row.attempts,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        model=_model_of(row),
    )


def _model_of(row: JobRow) -> ModelRef | None:
    name, config, weights = row.model_id, row.model_config_hash, row.model_weights_hash
    if name is None or config is None or weights is None:
        return None
    return ModelRef(id=name, config_hash=config, weights_hash=weights)


def job_event(row: EventRow) -> JobEvent:
    """The row as it is handed out."""
    return JobEvent(number=row.number, at=row.at, kind=row.kind, data=from_document(row.data))
