"""Recipes, each its owner's: rows for the facts, files for the tensors. Knows nothing of jobs or HTTP."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, undefer

from steersman.errors import Conflict, DataError, NotFound, StorageError
from steersman.steering.recipe import Recipe
from steersman.store.blobs import Blobs
from steersman.store.checks import check_name, check_owner, check_tags, from_document, is_keepable, page, slug
from steersman.store.database import Database
from steersman.store.facts import RecipeRecord
from steersman.store.packing import Packed, pack, unpack
from steersman.store.tables import RecipeRow, TagRow

Page = tuple[list[RecipeRecord], int]
"""Records, and how many there are in all."""
_ID = re.compile(r"rcp_[0-9a-f]{16}")


class Recipes:
    """The recipes of one store. What belongs to somebody else is not there."""

    def __init__(self, database: Database, blobs: Blobs, clock: Callable[[], datetime]) -> None:
        """Keep recipes in a database, their tensors in `blobs`, by a clock that gives UTC."""
        self._database, self._blobs, self._clock = database, blobs, clock

    def add(self, owner: str, recipe: Recipe, *, tags: Iterable[str] = ()) -> RecipeRecord:
        """Keep a recipe under its own name.

        Raises:
            Conflict: the owner has one of this name.
            DataError: a name or tag that will not do, or a recipe that JSON cannot hold.
            StorageError: the disk or the database refused; nothing is kept then.
        """
        check_owner(owner)
        check_new_name(recipe.name)
        wanted = check_tags(tags)
        packed = pack(recipe)
        if packed.tensors is not None:
            self._blobs.put(packed.tensors)  # The slow part, before the transaction.
        try:
            with self._database.holding_tensors() as session:
                return insert_recipe(session, self._blobs, self._clock(), owner, recipe.name, packed, wanted)
        except IntegrityError as error:
            raise Conflict(
                f"you have a recipe named {recipe.name!r}; choose another name or delete that one"
            ) from error

    def get(self, owner: str, id_or_name: str) -> RecipeRecord:
        """A recipe as a list shows it.

        Raises:
            NotFound: the owner has none of this id or name.
        """
        with self._database.reading() as session:
            return _record(session, _find(session, owner, id_or_name))

    def load(self, owner: str, id_or_name: str) -> Recipe:
        """The recipe itself.

        Raises:
            NotFound: the owner has none of this id or name.
            StorageError: its tensors are missing or damaged.
            RecipeError: a newer steersman wrote it.
        """
        row = self._row(owner, id_or_name)
        try:
            return unpack(row.facts, row.tensors, self._blobs, name=row.name)
        except StorageError:
            self._row(owner, id_or_name)  # Deleted and swept meanwhile? Then it is not there.
            raise

    def list(self, owner: str, *, limit: int = 20, offset: int = 0, tag: str | None = None) -> Page:
        """One page, the newest first, and how many there are in all.

        Raises:
            DataError: a limit over 1,000, or a negative number.
        """
        limit, offset = page(limit, offset)
        wanted = RecipeRow.owner == owner
        if tag is not None:
            wanted &= RecipeRow.id.in_(select(TagRow.recipe_id).where(TagRow.tag == tag))
        if not all(map(is_keepable, (owner, tag or ""))):
            return [], 0
        with self._database.reading() as session:
            total = session.scalar(select(func.count()).select_from(RecipeRow).where(wanted)) or 0
            order = (RecipeRow.created_at.desc(), RecipeRow.id)
            rows = session.scalars(select(RecipeRow).where(wanted).order_by(*order).limit(limit).offset(offset)).all()
            return _records(session, rows), total

    def tag(self, owner: str, id_or_name: str, tags: Iterable[str]) -> RecipeRecord:
        """Give a recipe these tags instead of those it has.

        Raises:
            NotFound: the owner has none of this id or name.
            DataError: a tag that will not do.
        """
        wanted = check_tags(tags)
        with self._database.writing() as session:
            row = _find(session, owner, id_or_name, for_update=True)
            session.execute(delete(TagRow).where(TagRow.recipe_id == row.id))
            session.add_all(TagRow(recipe_id=row.id, tag=tag) for tag in wanted)
            session.flush()
            return _record(session, row)

    def delete(self, owner: str, id_or_name: str) -> None:
        """Remove a recipe; its tensors go with the next sweep.

        Raises:
            NotFound: the owner has none of this id or name.
        """
        with self._database.writing() as session:
            session.delete(_find(session, owner, id_or_name, for_update=True))

    def _row(self, owner: str, id_or_name: str) -> RecipeRow:
        with self._database.reading() as session:
            return _find(session, owner, id_or_name, whole=True)


def check_new_name(name: str) -> str:
    """A name that a recipe may get.

    Raises:
        DataError: it breaks the rule of names, or looks like an id.
    """
    if _ID.fullmatch(name):
        raise DataError(f"recipe name {name!r} looks like an id; choose another")
    return check_name(name, "recipe name")


def insert_recipe(
    session: Session, blobs: Blobs, now: datetime, owner: str, name: str, packed: Packed, tags: Iterable[str] = ()
) -> RecipeRecord:
    """Add the rows of a recipe within a transaction that holds the tensors.

    Raises:
        IntegrityError: the owner has one of this name.
        StorageError: the disk refused.
    """
    # Written again where a sweep took it between `put` and this transaction; from here on none can.
    tensors = blobs.put(packed.tensors) if packed.tensors is not None else None
    row = RecipeRow(
        id=f"rcp_{secrets.token_hex(8)}",
        owner=owner,
        name=name,
        about=packed.about,
        facts=packed.facts,
        tensors=tensors,
        created_at=now,
    )
    session.add(row)
    session.flush()
    session.add_all(TagRow(recipe_id=row.id, tag=tag) for tag in tags)
    session.flush()
    return _record(session, row)


def free_name(session: Session, owner: str, wanted: str) -> str:
    """The nearest name to `wanted` that the owner has not used: itself, or with `-2`, `-3` behind it."""
    base = slug(wanted, "recipe")
    if _ID.fullmatch(base):
        base = f"recipe-{base}"
    taken = set(
        session.scalars(
            select(RecipeRow.name).where(RecipeRow.owner == owner, RecipeRow.name.startswith(base, autoescape=True))
        )
    )
    number, name = 1, base
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _find(session: Session, owner: str, id_or_name: str, *, for_update: bool = False, whole: bool = False) -> RecipeRow:
    """By id where it looks like one, else by name; never both, so that no name hides an id. `whole`: with all its facts."""
    column = RecipeRow.id if _ID.fullmatch(id_or_name) else RecipeRow.name
    row = None
    if is_keepable(owner) and is_keepable(id_or_name):
        query = select(RecipeRow).where(RecipeRow.owner == owner, column == id_or_name)
        query = query.options(undefer(RecipeRow.facts)) if whole else query
        row = session.scalars(query.with_for_update() if for_update else query).first()
    if row is None:
        raise NotFound(f"you have no recipe {id_or_name[:100]!a}; list your recipes to see their names")
    return row


def _record(session: Session, row: RecipeRow) -> RecipeRecord:
    return _records(session, [row])[0]


def _records(session: Session, rows: Iterable[RecipeRow]) -> list[RecipeRecord]:
    rows = list(rows)
    tags: dict[str, list[str]] = {row.id: [] for row in rows}
    for tag in session.scalars(select(TagRow).where(TagRow.recipe_id.in_(tags)).order_by(TagRow.tag)):
        tags[tag.recipe_id].append(tag.tag)
    return [
        RecipeRecord(
            id=row.id,
            owner=row.owner,
            name=row.name,
            tags=tuple(tags[row.id]),
            created_at=row.created_at,
            **from_document(row.about),
        )
        for row in rows
    ]
