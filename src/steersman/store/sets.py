"""Sets of steering vectors, one a trait, each fitted by a job of its own. Knows nothing of fitting or HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Select, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, load_only

from steersman.errors import Conflict, NotFound, StorageError
from steersman.models.language_model import ModelRef
from steersman.steering.recipe import Recipe
from steersman.store.blobs import Blobs
from steersman.store.checks import check_text, from_document, is_keepable, page, slug, to_document
from steersman.store.database import Database
from steersman.store.facts import ENDED, SetRecord
from steersman.store.job_rows import add_job, end_job, new_job
from steersman.store.packing import unpack
from steersman.store.tables import JobRow, SetRow, SetVectorRow

Page = tuple[list[SetRecord], int]
"""Records, and how many there are in all."""
KIND = "fit-set"
"""Kind of the job that fits a set."""
_TRIES = 5


class Sets:
    """The sets of one store. What belongs to somebody else is not there."""

    def __init__(self, database: Database, blobs: Blobs, clock: Callable[[], datetime]) -> None:
        """Keep sets in a database, their tensors in `blobs`, by a clock that gives UTC."""
        self._database, self._blobs, self._clock = database, blobs, clock

    def create(
        self,
        owner: str,
        label: str,
        *,
        model: str,
        method: str,
        dimensions: Mapping[str, JsonValue],
        prompts: Sequence[str] | None,
        request: Mapping[str, JsonValue],
        ref: ModelRef | None = None,
    ) -> SetRecord:
        """Make a set and the job that fits it, both or neither.

        Args:
            owner: whose it is.
            label: 1 to 100 printable characters; what of it fits into a name begins the set's id.
            model: what the model it is fitted to is called.
            method: how.
            dimensions: each trait with its examples, as they were given.
            prompts: as they were given.
            request: of the job; it gets the set's id as `set`.
            ref: the model that the job is for; None any.

        Raises:
            DataError: something that cannot be kept.
            StorageError: the database refused.
        """
        check_text(label, "label")
        kept = {
            "owner": owner,
            "label": label,
            "model": check_text(model, "model", most=500),
            "method": check_text(method, "method"),
            "dimensions": to_document(dict(dimensions), "the dimensions"),
            "prompts": to_document(list(prompts), "the prompts") if prompts is not None else None,
        }
        for _ in range(_TRIES):
            set_id = f"{slug(label, 'set')}-{secrets.token_hex(4)}"
            now = self._clock()
            job = new_job(owner, KIND, {**request, "set": set_id}, now, ref)
            row = SetRow(id=set_id, created_at=now, job_id=job.id, **kept)
            try:
                with self._database.writing() as session:
                    add_job(session, job)
                    session.add(row)
                    session.flush()
                    return _record(row, job)
            except IntegrityError:
                continue  # Eight digits may meet those of another set.
        raise Conflict(f"no free id was found for the label {label!a}; choose another label")

    def get(self, owner: str, set_id: str) -> SetRecord:
        """A set and the state of its job.

        Raises:
            NotFound: the owner has none of this id.
        """
        with self._database.reading() as session:
            return _record(*_find(session, owner, set_id))

    def list(self, owner: str, limit: int = 20, offset: int = 0) -> Page:
        """One page, the newest first, and how many there are in all.

        Raises:
            DataError: a limit over 1,000, or a negative number.
        """
        limit, offset = page(limit, offset)
        if not is_keepable(owner):
            return [], 0
        with self._database.reading() as session:
            total = session.scalar(select(func.count()).select_from(SetRow).where(SetRow.owner == owner)) or 0
            wanted = _with_jobs().where(SetRow.owner == owner)
            rows = session.execute(wanted.order_by(JobRow.number.desc()).limit(limit).offset(offset))
            return [_record(row, job) for row, job in rows], total

    def delete(self, owner: str, set_id: str) -> None:
        """Remove a set and its vectors, and cancel its job where that has not ended; the tensors go with the next sweep.

        Raises:
            NotFound: the owner has none of this id.
        """
        with self._database.writing() as session:
            row, _ = _find(session, owner, set_id)
            # The job is locked first, as its worker does when it finishes: the other way round the two could block each other.
            lock = select(JobRow).where(JobRow.id == row.job_id).with_for_update()
            job = session.scalars(lock.execution_options(populate_existing=True)).one()
            if job.state not in ENDED:
                end_job(job, "cancelled", self._clock())
            session.execute(delete(SetRow).where(SetRow.id == row.id))

    def vectors(self, owner: str, set_id: str) -> dict[str, Recipe]:
        """The recipe of each trait, in the order in which they were fitted.

        Raises:
            NotFound: the owner has none of this id.
            Conflict: the set is not ready, or will never be.
            StorageError: a tensor file is missing or damaged.
            RecipeError: a newer steersman wrote it.
        """
        try:
            return self._vectors(owner, set_id)
        except StorageError:
            self.get(owner, set_id)  # Deleted and swept meanwhile? Then it is not there.
            raise

    def _vectors(self, owner: str, set_id: str) -> dict[str, Recipe]:
        with self._database.reading() as session:
            row, job = _find(session, owner, set_id)
            if job.state != "ready":
                because = f": {job.error}" if job.error else ""
                raise Conflict(f"set {row.id} is not ready ({job.state}{because}); ask for its status until it is")
            wanted = select(SetVectorRow).where(SetVectorRow.set_id == row.id).order_by(SetVectorRow.place)
            rows = session.scalars(wanted).all()
        return dict(map(self._unpacked, rows))

    def _unpacked(self, row: SetVectorRow) -> tuple[str, Recipe]:
        return from_document(row.trait), unpack(row.facts, row.tensors, self._blobs)


def _with_jobs() -> Select[SetRow, JobRow]:
    """Sets, of each job no more than how it stands: its request and result are as large as the set itself."""
    both = select(SetRow, JobRow).join(JobRow, JobRow.id == SetRow.job_id)
    return both.options(load_only(JobRow.number, JobRow.state, JobRow.error, raiseload=True))


def _find(session: Session, owner: str, set_id: str) -> tuple[SetRow, JobRow]:
    found = None
    if is_keepable(owner) and is_keepable(set_id):
        found = session.execute(_with_jobs().where(SetRow.owner == owner, SetRow.id == set_id)).first()
    if found is None:
        raise NotFound(f"you have no set {set_id[:120]!a}; list your sets to see their ids")
    return found[0], found[1]


def _record(row: SetRow, job: JobRow) -> SetRecord:
    state: Any = job.state
    return SetRecord(
        id=row.id,
        owner=row.owner,
        label=row.label,
        model=row.model,
        method=row.method,
        dimensions=from_document(row.dimensions),
        created_at=row.created_at,
        job_id=row.job_id,
        state=state,
        error=job.error,
    )
