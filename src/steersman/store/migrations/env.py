"""What alembic runs before the steps: it hands them the connection that the caller gave. Other imports only define."""

from __future__ import annotations

from alembic import context

from steersman.store.migrations.upgrade import VERSION_TABLE
from steersman.store.tables import Table


def run() -> None:
    """Run the steps on the caller's connection, in its transaction."""
    context.configure(
        connection=context.config.attributes["connection"], target_metadata=Table.metadata, version_table=VERSION_TABLE
    )
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":  # The name that alembic loads this file by.
    run()
