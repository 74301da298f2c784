"""One database, SQLite or PostgreSQL: opened, brought up to date, read and written in short transactions, its errors in words.

Knows nothing of what is kept in it. SQLite runs in WAL mode, writers wait for each other and readers for nobody; PostgreSQL runs
at READ COMMITTED. Nobody waits without end: not for a lock, and on PostgreSQL neither for a statement nor for a transaction that
somebody left open. A database that went away and came back just works: connections are tried before they are used.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from steersman.errors import DataError
from steersman.store.connections import (
    POSTGRES,
    SQLITE,
    explained,
    parse_address,
    postgres_engine,
    set_wal,
    sqlite_engine,
)
from steersman.store.migrations.upgrade import upgrade

# Any numbers, the same in every steersman.
_TENSOR_LOCK = 0x73746572
_UPGRADE_LOCK = _TENSOR_LOCK + 1
_NAMES_LOCK = _TENSOR_LOCK + 2


class Database:
    """Transactions on one database. Thread-safe; several processes may have it open."""

    def __init__(self, engine: Engine, place: str) -> None:
        """Keep an engine made by `open`, and the database's place for messages (never a password)."""
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self.place = place

    @classmethod
    def open(cls, url: str | None, folder: Path) -> Database:
        """Open the database and bring its tables up to date.

        Args:
            url: `postgresql://user:password@host/name` or `sqlite:////full/path.db`; None for `folder/steersman.db`.
            folder: made where it is not there.

        Raises:
            DataError: the address cannot be understood.
            StorageError: the database cannot be reached, read or written, or a newer steersman has written it.
        """
        parsed = URL.create(SQLITE, database=str(folder / "steersman.db")) if url is None else parse_address(url)
        kind = parsed.get_backend_name()
        if kind == SQLITE:
            path = Path(str(parsed.database)).absolute()
            place, engine = f"at {path}", sqlite_engine(path)
        else:
            place, engine = f"{parsed.database!r} at {parsed.host or 'this machine'}", postgres_engine(parsed)
        made = cls(engine, place)
        try:
            with made._in_words():
                if kind == SQLITE:
                    set_wal(engine)
                with made._writer.begin() as connection:
                    _take_time(connection)
                    _lock(connection, _UPGRADE_LOCK)
                    upgrade(connection, place)
        except BaseException:
            engine.dispose()
            raise
        return made

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one moment and changes nothing.

        Raises:
            StorageError: the database does not answer.
        """
        with self._in_words(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is kept when the block ends well, and undone when it raises.

        Raises:
            StorageError: the database refuses or does not answer.
        """
        with self._in_words(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def holding_tensors(self, *, alone: bool = False) -> Iterator[Session]:
        """As `writing`, while no tensor file is swept away; `alone`: while no row begins to refer to one."""
        with self.writing() as session:
            _lock(session.connection(), _TENSOR_LOCK, shared=not alone)
            yield session

    def ping(self) -> None:
        """Ask the database for nothing.

        Raises:
            StorageError: it does not answer.
        """
        with self.reading() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # A name that is taken: whoever wrote it knows what that means.
        except (DBAPIError, PoolTimeout, DisconnectionError, sqlite3.Error) as error:
            raise explained(error, self.place) from error
        except SQLAlchemyError as error:
            # What the driver could not even send: half a character, a number without bounds.
            if isinstance(error.__cause__, UnicodeError | OverflowError | ValueError):
                raise DataError("a text or a number cannot be kept in the database") from error
            raise


def lock_names(session: Session) -> None:
    """Until the transaction ends, nobody else looks for a free name; a name that is given outright is not waited for."""
    _lock(session.connection(), _NAMES_LOCK)


def _take_time(connection: Connection) -> None:
    """Let statements of this transaction take as long as a new index on a large table does; locks are waited for as always."""
    if connection.dialect.name == POSTGRES:
        connection.execute(text("SET LOCAL statement_timeout = 0"))


def _lock(connection: Connection, number: int, *, shared: bool = False) -> None:
    """Wait for a lock until the transaction ends. SQLite's writers are alone anyway."""
    if connection.dialect.name == POSTGRES:
        name = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        connection.execute(text(f"SELECT {name}(:number)"), {"number": number})
