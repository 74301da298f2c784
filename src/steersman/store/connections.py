"""How the database is reached: its address, SQLite's file and PostgreSQL's server, and what their errors mean in words.

Knows nothing of transactions or of what is kept.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.exc import DataError as SqlDataError

from steersman.errors import DataError, StorageError
from steersman.files import make_folder, storage_errors

BUSY_S = 30.0
"""How long a writer waits for another."""
STATEMENT_S = 2 * BUSY_S
"""How long one statement may take on PostgreSQL, waiting included."""
SQLITE = "sqlite"
POSTGRES = "postgresql"
_IDLE_S = 300.0  # A process that hangs in a transaction loses it, so that its locks hold nobody up for ever.
# In seconds, but for the last: a server that vanished without a word is noticed in half a minute, not in a quarter of an hour.
_NETWORK = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


def parse_address(url: str) -> URL:
    """The address, its driver chosen.

    Raises:
        DataError: it cannot be understood, or names a kind of database that is not supported.
    """
    try:
        if "\0" in url:
            raise ValueError("NUL")
        parsed = make_url(url.strip())
        kind = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise DataError(
            "the database address cannot be read; write postgresql://user@host/name or sqlite:////path.db"
        ) from error
    if kind in {POSTGRES, "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    if kind == SQLITE and parsed.database and parsed.database != ":memory:" and not parsed.query:
        return parsed
    if kind == SQLITE:
        raise DataError("a SQLite address names a file and nothing else: sqlite:////full/path.db")
    raise DataError(f"databases of the kind {kind[:40]!r} are not supported; use postgresql:// or sqlite://")


def sqlite_engine(path: Path) -> Engine:
    """Connections to a file, made where it is not there; one that was put in its place meanwhile is not written to.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(path):
        make_folder(path.parent)
        path.touch()

    def connect() -> sqlite3.Connection:
        if not path.exists():  # SQLite would make an empty one.
            raise sqlite3.OperationalError("unable to open database file")
        # Transactions are ours to begin: Python's driver begins none before a SELECT or a CREATE TABLE.
        return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)

    engine = create_engine(
        "sqlite://",
        creator=connect,
        hide_parameters=True,
        poolclass=QueuePool,
        pool_size=10,
        max_overflow=20,
        pool_timeout=BUSY_S,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")  # What was answered survives a power cut.
        record.info["inode"] = _inode(path)

    @event.listens_for(engine, "checkout")
    def check(_connection: Any, record: Any, _proxy: Any) -> None:
        # A file that was removed or put back is another file; the old one would take writes that nobody finds again.
        now = _inode(path)
        if now is None or now != record.info["inode"]:
            raise DisconnectionError("the file is not the one that was opened")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: two readers that both want to write afterwards would refuse each other.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _inode(path: Path) -> int | None:
    """What tells a file from another of its name; None where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def set_wal(engine: Engine) -> None:
    """Switch to WAL mode, which lasts. SQLite does not wait by itself for others that open the file now."""
    until = time.monotonic() + BUSY_S
    connection = engine.raw_connection()
    try:
        while True:
            try:
                connection.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)
    finally:
        connection.close()


def postgres_engine(url: URL) -> Engine:
    """Connections to a server, with a limit on whatever could wait.

    Raises:
        StorageError: the driver is not installed.
    """
    try:
        engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_size=10,
            max_overflow=20,
            pool_timeout=BUSY_S,
            hide_parameters=True,
            connect_args={"application_name": "steersman", **_NETWORK},
        )
    except ImportError as error:
        raise StorageError("PostgreSQL needs a driver; install it with: pip install 'steersman[postgres]'") from error
    limits = {
        "lock_timeout": BUSY_S,
        "statement_timeout": STATEMENT_S,
        "idle_in_transaction_session_timeout": _IDLE_S,
    }

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # Not as options of the connection: those may stand in the address already, and not every pooler takes them.
        with connection.cursor() as cursor:
            for name, seconds in limits.items():
                cursor.execute(f"SET {name} = {round(1000 * seconds)}")
        connection.commit()

    return engine


def explained(error: Exception, place: str) -> DataError | StorageError:
    """What went wrong, without SQL, values or password; those stay in the cause, for a log."""
    if isinstance(error, SqlDataError):
        return DataError("a text or a number cannot be kept in the database")
    said = str(getattr(error, "orig", error)).lower()
    for words, meaning in _MEANINGS:
        if words in said:
            return StorageError(f"the database {place} {meaning}")
    return StorageError(f"the database {place} does not answer or refuses; is it running, and may steersman use it?")


_MEANINGS = (
    ("disk is full", "has no space left; free some space"),
    ("no space", "has no space left; free some space"),
    ("locked", f"was busy for {BUSY_S:.0f} seconds with another writer; try again"),
    ("lock timeout", f"was busy for {BUSY_S:.0f} seconds with another writer; try again"),
    ("statement timeout", f"did not answer within {STATEMENT_S:.0f} seconds; try again"),
    ("idle-in-transaction", "ended a transaction that was left open too long; try again"),
    ("readonly", "is read-only; choose a folder you may write to"),
    ("read-only", "is read-only; choose one that may be written"),
    ("not a database", "is no database, or damaged; move the file away or restore it"),
    ("malformed", "is damaged; restore it from a backup"),
    ("disk i/o", "cannot be read or written; check the disk and its limits"),
    ("unable to open", "cannot be opened; is the file there, and may steersman write it?"),
    ("password", "refuses the user or the password; check the address"),
    ("does not exist", "or one of its tables does not exist; make it with createdb, or check the address"),
    ("no such table", "lacks a table; restore it from a backup"),
    ("already exists", "has tables of another program; give steersman a database of its own"),
    ("permission denied", "refuses this user; grant it the right to make tables"),
    ("too many", "has no connection free; try again or allow more"),
    ("queuepool limit", "has no connection free; try again"),
)
