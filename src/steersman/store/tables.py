"""The tables, as SQLAlchemy sees them. `migrations/` makes them; a test compares the two. Knows nothing of how they are used."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import BigInteger, DateTime, Dialect, ForeignKey, Index, Integer, MetaData, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

_CASCADE = "CASCADE"


class Utc(TypeDecorator[datetime]):
    """A time with its zone, kept in UTC; SQLite has no zones, so they are taken off and put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn a time into what is kept."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn what is kept into a time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_COUNTER = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up only what is declared INTEGER.


class Table(DeclarativeBase):
    """Base of all tables. Texts are bounded before they come here, JSON documents are texts."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text(), datetime: Utc()}  # noqa: RUF012 - read by SQLAlchemy, never changed


class IdentityRow(Table):
    """One row: which database this is, so that two may share a folder of tensors."""

    __tablename__ = "identity"
    id: Mapped[str] = mapped_column(primary_key=True)


class KeyRow(Table):
    """An API key, without the key."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner: Mapped[str]
    scopes: Mapped[str]
    digest: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class RecipeRow(Table):
    """A recipe without its tensors; `about` is what a list shows, `facts` the rest."""

    __tablename__ = "recipes"
    __table_args__ = (UniqueConstraint("owner", "name"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    about: Mapped[str]
    facts: Mapped[str] = mapped_column(deferred=True)
    tensors: Mapped[str | None] = mapped_column(index=True)
    created_at: Mapped[datetime]


class TagRow(Table):
    """A recipe's tag."""

    __tablename__ = "recipe_tags"
    recipe_id: Mapped[str] = mapped_column(ForeignKey("recipes.id", ondelete=_CASCADE), primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True, index=True)


class JobRow(Table):
    """Work in the background; `number` is the order in which it came. Without the hashes of a model, any will do."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state", "number"), Index(None, "owner", "number"), UniqueConstraint("id"))
    number: Mapped[int] = mapped_column(_COUNTER, primary_key=True, autoincrement=True)
    id: Mapped[str]
    owner: Mapped[str]
    kind: Mapped[str]
    state: Mapped[str]
    model_id: Mapped[str | None]
    model_config_hash: Mapped[str | None]
    model_weights_hash: Mapped[str | None]
    request: Mapped[str]
    result: Mapped[str | None]
    error: Mapped[str | None]
    attempts: Mapped[int]
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    n_events: Mapped[int]


class EventRow(Table):
    """Something that happened in a job."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete=_CASCADE), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    kind: Mapped[str]
    data: Mapped[str]


class SetRow(Table):
    """A set of steering vectors; its state is that of its job."""

    __tablename__ = "sets"
    __table_args__ = (UniqueConstraint("job_id"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(index=True)
    label: Mapped[str]
    model: Mapped[str]
    method: Mapped[str]
    dimensions: Mapped[str]
    prompts: Mapped[str | None] = mapped_column(deferred=True)
    created_at: Mapped[datetime]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))


class SetVectorRow(Table):
    """One trait of a set. Its place is the key, since a trait's name may be too long for an index."""

    __tablename__ = "set_vectors"
    set_id: Mapped[str] = mapped_column(ForeignKey("sets.id", ondelete=_CASCADE), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    trait: Mapped[str]
    facts: Mapped[str]
    tensors: Mapped[str | None] = mapped_column(index=True)
