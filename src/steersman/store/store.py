"""The store: one database and one folder of tensors, opened together. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import select, union

from steersman.errors import StorageError
from steersman.files import make_folder
from steersman.store.blobs import Blobs
from steersman.store.checks import utc_now
from steersman.store.database import Database
from steersman.store.jobs import Jobs
from steersman.store.keys import Keys
from steersman.store.recipes import Recipes
from steersman.store.sets import Sets
from steersman.store.tables import IdentityRow, RecipeRow, SetVectorRow


class Store:
    """Keys, recipes, sets and jobs. Thread-safe; several processes may open the same one, with the same folder."""

    def __init__(self, database: Database, folder: Path, clock: Callable[[], datetime]) -> None:
        """Use `open` instead.

        Raises:
            StorageError: the database does not say which one it is.
        """
        self._database, self.folder = database, folder
        with database.reading() as session:
            identity = session.scalar(select(IdentityRow.id))
        if identity is None:
            raise StorageError(f"the database {database.place} has lost its identity; restore it from a backup")
        # Each database has tensors of its own, so that one never sweeps away what another refers to.
        self._blobs = Blobs(folder / "tensors" / identity)
        self.keys = Keys(database, clock)
        self.recipes = Recipes(database, self._blobs, clock)
        self.jobs = Jobs(database, self._blobs, clock)
        self.sets = Sets(database, self._blobs, clock)

    @classmethod
    def open(cls, url: str | None, folder: Path, *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Open a store, made where it is not there, and bring its tables up to date.

        Args:
            url: `postgresql://user:password@host/name` or `sqlite:////full/path.db`; None for SQLite in `folder`.
            folder: of the tensors, and of the database where `url` is None.
            clock: gives the time with its zone.

        Raises:
            DataError: the address cannot be understood.
            StorageError: the folder cannot be made, or the database cannot be reached, read or written, or a newer
                steersman has written it.
        """
        make_folder(folder)  # Said now, and not when the first recipe is kept.
        database = Database.open(url, folder)
        try:
            return cls(database, folder, clock)
        except BaseException:
            database.close()
            raise

    def ping(self) -> None:
        """Ask the database for nothing.

        Raises:
            StorageError: it does not answer.
        """
        self._database.ping()

    def sweep(self) -> int:
        """Remove the tensor files that nothing refers to; how many there were.

        Raises:
            StorageError: the disk or the database refused.
        """
        with self._database.holding_tensors(alone=True) as session:
            kept = session.scalars(union(select(RecipeRow.tensors), select(SetVectorRow.tensors)))
            return self._blobs.sweep({sha256 for sha256 in kept if sha256 is not None})

    def close(self) -> None:
        """Close all connections; the store cannot be used afterwards."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
