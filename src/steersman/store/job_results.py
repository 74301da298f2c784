"""What a job came to, kept in one transaction: its result, its recipes, the vectors of its set. Knows nothing of leases."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from steersman.errors import DataError
from steersman.store.blobs import Blobs
from steersman.store.checks import to_document
from steersman.store.database import lock_names
from steersman.store.job_rows import end_job
from steersman.store.packing import Packed
from steersman.store.recipes import free_name, insert_recipe
from steersman.store.tables import JobRow, SetRow, SetVectorRow


def keep_result(
    session: Session,
    blobs: Blobs,
    row: JobRow,
    now: datetime,
    *,
    result: dict[str, JsonValue],
    kept: Mapping[str, Packed],
    traits: Mapping[str, Packed],
) -> None:
    """End a job well, within a transaction that holds the tensors and has locked the job's row.

    Args:
        session: the transaction.
        blobs: take the tensors.
        row: the job.
        now: when it ends.
        result: what is shown of it; gets the ids of what is kept as `recipes`.
        kept: recipes of the job's owner, by the name wished for each.
        traits: the recipes of its set, by trait.

    Raises:
        IntegrityError: somebody gave a recipe the name that was free a moment ago.
        DataError: traits of a job without a set, or a result that cannot be kept.
        StorageError: the disk refused.
    """
    ids: dict[str, JsonValue] = {}
    lock_names(session)
    for wished, packed in kept.items():
        name = free_name(session, row.owner, wished)
        ids[wished] = insert_recipe(session, blobs, now, row.owner, name, packed).id
    if traits:
        _keep_vectors(session, blobs, row, traits)
    row.result = to_document({**result, "recipes": ids} if kept else result, "the job's result")
    end_job(row, "ready", now)
    session.flush()


def _keep_vectors(session: Session, blobs: Blobs, job: JobRow, traits: Mapping[str, Packed]) -> None:
    set_id = session.scalar(select(SetRow.id).where(SetRow.job_id == job.id))
    if set_id is None:
        raise DataError(f"job {job.id} of kind {job.kind!a} has no set to keep vectors for")
    for place, (trait, packed) in enumerate(traits.items()):
        tensors = blobs.put(packed.tensors) if packed.tensors is not None else None
        row = SetVectorRow(
            set_id=set_id, place=place, trait=to_document(trait, "trait"), facts=packed.facts, tensors=tensors
        )
        session.add(row)
    session.flush()
