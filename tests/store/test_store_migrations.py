"""Migrations: they make what the models say, from nothing and from any earlier step, and go no further than they know."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from tests.store.rooms import Room, small_recipe

from steersman.errors import StorageError
from steersman.models.language_model import ModelRef
from steersman.store.migrations.upgrade import VERSION_TABLE, config
from steersman.store.store import Store
from steersman.store.tables import Table


def _connection(store: Store) -> Connection:
    return store._database._writer.connect()


def test_models_and_migrations_agree(store: Store) -> None:
    with _connection(store) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_each_step_follows_one_other() -> None:
    script = ScriptDirectory.from_config(config())
    assert len(script.get_heads()) == len(script.get_bases()) == 1


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "steersman.db").touch()
    with Store.open(None, tmp_path) as store:
        store.recipes.add("ann", small_recipe())
    with Store.open(f"sqlite:///{tmp_path / 'steersman.db'}", tmp_path) as store:
        assert store.recipes.load("ann", "cheerful") == small_recipe()


def test_opening_again_changes_nothing(room: Room) -> None:
    with room.open() as store:
        identity = store._blobs.path("x" * 64).parent.parent
        store.recipes.add("ann", small_recipe())
    for _ in range(3):
        with room.open() as store:
            assert store._blobs.path("x" * 64).parent.parent == identity
            assert store.recipes.list("ann")[1] == 1


def test_the_steps_can_be_taken_back_and_again(room: Room, store: Store) -> None:
    with _connection(store) as connection, connection.begin():
        command.downgrade(config(connection), "base")
        assert set(inspect(connection).get_table_names()) == {VERSION_TABLE}
    with room.open() as again:
        assert again.recipes.list("ann") == ([], 0)
        with _connection(again) as connection:
            assert set(inspect(connection).get_table_names()) == {VERSION_TABLE, *Table.metadata.tables}


def test_jobs_from_before_there_were_models_are_for_any(room: Room) -> None:
    with room.open() as store:
        made = store.jobs.create("ann", "fit", {"n": 1})
        with _connection(store) as connection, connection.begin():
            command.downgrade(config(connection), "0001")
            assert "model_id" not in {column["name"] for column in inspect(connection).get_columns("jobs")}
    with room.open() as store:
        assert store.jobs.get("ann", made.id) == made
        claimed = store.jobs.claim("w", 30, model=ModelRef(id="m", config_hash="c", weights_hash="w"))
        assert claimed is not None
        assert (claimed.id, claimed.model) == (made.id, None)


def test_a_newer_database_is_refused_and_left_alone(room: Room) -> None:
    with room.open() as store:
        store.recipes.add("ann", small_recipe())
        with _connection(store) as connection, connection.begin():
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"newer steersman \(revision 9999\); update steersman"):
        room.open()
    with pytest.raises(StorageError, match="newer"):
        room.open()


def test_tables_of_another_program_are_left_alone(room: Room) -> None:
    with room.open() as store:
        with _connection(store) as connection, connection.begin():
            command.downgrade(config(connection), "base")
            connection.execute(text("CREATE TABLE jobs (mine INTEGER)"))
            connection.execute(text("INSERT INTO jobs VALUES (7)"))
        with pytest.raises(StorageError, match="another program; give steersman a database of its own") as caught:
            room.open()
        assert "CREATE" not in str(caught.value)
        with _connection(store) as connection:
            # Nothing was made before it was noticed.
            assert set(inspect(connection).get_table_names()) == {VERSION_TABLE, "jobs"}
            assert connection.execute(text("SELECT mine FROM jobs")).scalar() == 7


@pytest.mark.parametrize(
    "data", [b"no database at all, but a text of some length" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "steersman.db"
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"database|damaged") as caught:
        Store.open(None, tmp_path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == data
