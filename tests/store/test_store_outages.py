"""Outages: a database that is not there, full or read-only says so in one line, loses nothing, and works again afterwards."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from tests.postgres import Cluster
from tests.store.rooms import small_recipe

from steersman.errors import DataError, SteersmanError, StorageError
from steersman.store import connections
from steersman.store.store import Store

_SECRET = "hunter2"


# --- addresses


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "://",
        "mysql://u:hunter2@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////tmp/a.db?mode=memory&p=hunter2",
        "postgresql://u:hunter2@h:notaport/d",
        "\0hunter2",
        "sqlite:////tmp/\0hunter2.db",
        "x" * 10_000,
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError) as caught:
        Store.open(url, tmp_path / "f")
    assert _SECRET not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_server_that_does_not_answer_is_said_without_its_password(tmp_path: Path, scheme: str) -> None:
    with pytest.raises(StorageError, match="does not answer") as caught:
        Store.open(f"{scheme}://someone:{_SECRET}@127.0.0.1:1/things", tmp_path)
    _check_words(caught.value)


def test_a_file_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="permission denied"):
        Store.open("sqlite:////proc/none/x.db", tmp_path)
    with pytest.raises(StorageError, match="permission denied"):
        Store.open(None, Path("/proc/none"))


def test_a_database_that_is_not_there_is_said(postgres: Cluster, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        Store.open(f"postgresql://steersman@/nowhere?host={postgres.folder}", tmp_path)


def _check_words(error: SteersmanError) -> None:
    said = str(error)
    assert "\n" not in said
    assert len(said) < 400
    for never in (_SECRET, "SELECT", "INSERT", "UPDATE", "psycopg", "sqlalche", "Traceback"):
        assert never not in said


# --- gone and back


def _acts(store: Store) -> list[Callable[[], Any]]:
    return [
        store.ping,
        store.sweep,
        store.keys.list,
        lambda: store.keys.verify("ssm_000000000000_" + "a" * 43),
        lambda: store.recipes.list("ann"),
        lambda: store.recipes.load("ann", "cheerful"),
        lambda: store.recipes.add("ann", small_recipe("other")),
        lambda: store.jobs.claim("w", 30),
        lambda: store.jobs.recover(),
        lambda: store.jobs.tell("job_0", "log", {}),
        lambda: store.sets.list("ann"),
    ]


def test_a_server_that_went_away_and_came_back(postgres: Cluster, tmp_path: Path) -> None:
    with Store.open(postgres.new_database(), tmp_path) as store:
        store.recipes.add("ann", small_recipe())
        job = store.jobs.create("ann", "fit", {})
        assert store.jobs.claim("w", 30) is not None
        postgres.stop()
        try:
            for act in _acts(store):
                with pytest.raises(StorageError) as caught:
                    act()
                _check_words(caught.value)
        finally:
            postgres.start()
        store.ping()
        assert store.recipes.load("ann", "cheerful") == small_recipe()
        assert store.recipes.list("ann")[1] == 1
        assert store.jobs.finish(job.id, "w", {}, recipes={"other": small_recipe("other", 2.0)}).state == "ready"
        assert store.sweep() == 0


def test_a_server_that_goes_in_the_middle_of_a_transaction_keeps_nothing_of_it(
    postgres: Cluster, tmp_path: Path
) -> None:
    with Store.open(postgres.new_database(), tmp_path) as store:

        def leave() -> None:
            with store._database.writing() as session:
                session.connection()
                postgres.stop()
                store.recipes.add("ann", small_recipe())

        try:
            with pytest.raises(StorageError):
                leave()
        finally:
            postgres.start()
        assert store.recipes.list("ann") == ([], 0)


def test_a_file_that_went_away_and_came_back(tmp_path: Path) -> None:
    with Store.open(None, tmp_path) as store:
        store.recipes.add("ann", small_recipe())
    with Store.open(None, tmp_path) as store:
        store.ping()
        shutil.copytree(tmp_path, tmp_path / "backup", ignore=shutil.ignore_patterns("backup", "*-wal", "*-shm"))
        for path in tmp_path.glob("steersman.db*"):
            path.unlink()
        for act in _acts(store):
            with pytest.raises(StorageError) as caught:
                act()
            _check_words(caught.value)
        assert not (tmp_path / "steersman.db").exists()  # No empty one in its place.
        shutil.copy(tmp_path / "backup" / "steersman.db", tmp_path / "steersman.db")
        store.ping()
        assert store.recipes.load("ann", "cheerful") == small_recipe()


def test_a_writer_that_never_ends_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_S", 0.2)
    with Store.open(None, tmp_path) as store:
        other = sqlite3.connect(tmp_path / "steersman.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StorageError, match="busy"):
                store.recipes.add("ann", small_recipe())
            assert store.recipes.list("ann") == ([], 0)  # Readers wait for nobody.
        finally:
            other.close()
        store.recipes.add("ann", small_recipe())
        assert store.sweep() == 0


@contextlib.contextmanager
def _locked(url: str, table: str) -> Iterator[None]:
    """Somebody else holds a table and does not let go."""
    with psycopg.connect(url) as other:
        other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield


def test_a_lock_that_is_never_given_back_is_not_waited_for_without_end(
    postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_S", 0.3)
    url = postgres.new_database()
    with Store.open(url, tmp_path) as store:
        job = store.jobs.create("ann", "fit", {})
        acts: list[Callable[[], Any]] = [
            lambda: store.jobs.create("ann", "fit", {}),
            lambda: store.jobs.get("ann", job.id),
            lambda: store.jobs.list("ann"),
            lambda: store.jobs.claim("w", 30),
            lambda: store.jobs.prune(1),
            lambda: store.sets.list("ann"),
        ]
        with _locked(url, "jobs"):
            for act in acts:
                began = time.monotonic()
                with pytest.raises(StorageError, match="busy") as caught:
                    act()
                assert time.monotonic() - began < 5
                _check_words(caught.value)
            assert store.recipes.list("ann") == ([], 0)
        assert store._database._engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert store.jobs.list("ann") == ([job], 1)
        claimed = store.jobs.claim("w", 30)
        assert claimed is not None
        assert claimed.id == job.id


def test_a_statement_that_takes_too_long_is_ended(
    postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STATEMENT_S", 0.3)
    with Store.open(postgres.new_database(), tmp_path) as store:
        with pytest.raises(StorageError, match="did not answer within") as caught, store._database.reading() as session:
            session.execute(text("SELECT pg_sleep(30)"))
        _check_words(caught.value)
        store.ping()


def test_a_transaction_that_is_left_open_loses_its_locks(
    postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_IDLE_S", 0.3)
    with Store.open(postgres.new_database(), tmp_path) as store:
        job = store.jobs.create("ann", "fit", {})

        def hang() -> None:
            with store._database.writing() as session:
                session.execute(text("UPDATE jobs SET state = 'ready'"))
                time.sleep(1.0)
                session.execute(text("SELECT 1"))

        with pytest.raises(StorageError, match="left open too long") as caught:
            hang()
        _check_words(caught.value)
        assert store.jobs.get("ann", job.id).state == "pending"


def test_options_that_stand_in_the_address_hold(postgres: Cluster, tmp_path: Path) -> None:
    with Store.open(postgres.new_database(), tmp_path) as store, store._database.reading() as session:
        assert str(session.scalar(text("SHOW search_path"))).startswith("store_")
        assert session.scalar(text("SHOW lock_timeout")) == "30s"
        assert session.scalar(text("SHOW statement_timeout")) == "1min"


def test_no_connection_is_lost_by_refusals(tmp_path: Path) -> None:
    with Store.open(None, tmp_path) as store:
        store.recipes.add("ann", small_recipe())
        for _ in range(100):
            with pytest.raises(SteersmanError):
                store.recipes.add("ann", small_recipe())
            with pytest.raises(SteersmanError):
                store.recipes.get("ann", "no-such")
        assert store._database._engine.pool.checkedout() == 0  # type: ignore[attr-defined]


# --- full and read-only: in a process of its own, with a disk of its own


_CHILD = """
import sys
from pathlib import Path
from tests.store.rooms import small_recipe
from steersman.errors import StorageError
from steersman.store.store import Store
{limit}
kept = 0
folder = Path(sys.argv[1])
try:
    store = Store.open(None, folder)
    while kept < 3000:
        store.recipes.add("ann", small_recipe(f"r{{kept}}", 1.0 + kept))
        kept += 1
except StorageError as error:
    said = str(error)
{after}
"""
_LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
"""
_CHECK = """
print(kept, said)
names = [record.name for record in store.recipes.list("ann", limit=1000)[0]]
assert sorted(names) == sorted(f"r{n}" for n in range(kept)), (kept, len(names))
assert all(store.recipes.load("ann", name).name == name for name in names)
"""


def _child(folder: Path, limit: str = "", after: str = _CHECK, mount: str | None = None) -> str:
    program = [sys.executable, "-c", _CHILD.format(limit=limit, after=after), str(folder)]
    if mount is not None:
        options = f'mount -t tmpfs -o {mount} tmpfs "$1" || exit 77; shift; exec "$@"'
        program = ["unshare", "--mount", "sh", "-c", options, "sh", str(folder), *program]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[2]
    )
    if mount is not None and (done.returncode == 77 or "unshare" in done.stderr):
        pytest.skip("a disk of one's own (unshare, mount) is not allowed here")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_disk_that_fills_up_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    kept, said = _child(tmp_path, mount="size=1m").split(" ", 1)
    assert int(kept) > 0
    assert "free some space" in said


def test_a_file_that_may_not_grow_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    kept, said = _child(tmp_path, limit=_LIMIT).split(" ", 1)
    assert int(kept) > 0
    assert "disk" in said


def test_a_tensor_that_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    wide = """
import dataclasses
from steersman.steering.vector import Vector
small = small_recipe
def small_recipe(name, number):
    recipe = small(name, number)
    wide = Vector([number] * (200_000 if name == "r2" else 8))
    return dataclasses.replace(recipe, edits=(dataclasses.replace(recipe.edits[0], vector=wide),))
"""
    kept, said = _child(tmp_path, limit=wide + _LIMIT).split(" ", 1)
    assert int(kept) == 2
    assert "size limit" in said
    assert len([path for path in (tmp_path / "tensors").rglob("*") if path.is_file()]) == 2


def test_a_folder_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    said = _child(tmp_path, mount="size=1m,ro", after="print(kept, said)")
    assert "read-only" in said


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="not a folder"):
        Store.open(None, tmp_path / "file" / "store")
