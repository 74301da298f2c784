"""Bring a database to the newest step. Knows nothing of what the tables are for."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from steersman.errors import StorageError

VERSION_TABLE = "steersman_revision"
"""Not alembic's usual name, so that another program's steps are not taken for ours."""
_ONE_AT_A_TIME = threading.Lock()  # alembic keeps the step that it runs in module globals.


def config(connection: Connection | None = None) -> Config:
    """What alembic needs to find the steps, and the connection to run them on."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection, place: str) -> None:
    """Run the steps that this database has not seen, within the caller's transaction.

    Args:
        connection: in a transaction; nobody else upgrades meanwhile.
        place: where the database is, for the message.

    Raises:
        StorageError: the database has seen steps that we do not know.
    """
    with _ONE_AT_A_TIME:
        made = config(connection)
        known = {script.revision for script in ScriptDirectory.from_config(made).walk_revisions()}
        seen = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
        unknown = sorted(set(seen) - known)
        if unknown:
            raise StorageError(
                f"the database {place} was written by a newer steersman (revision {unknown[0][:40]}); update steersman, or "
                "use another database"
            )
        command.upgrade(made, "head")
