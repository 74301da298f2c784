"""A real PostgreSQL for tests: a throwaway cluster in a temporary folder, reached through a socket there.

from tests.postgres import Cluster, postgres  # The second is a fixture.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

_HOMES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")
_USER = "steersman"


class Cluster:
    """A server that can be stopped and started, and databases in it."""

    def __init__(self, binaries: Path) -> None:
        # Not in pytest's folder: a socket's path has at most 107 characters, and another user must reach it.
        self._binaries, self.folder = binaries, Path(tempfile.mkdtemp(prefix="steersman-pg-", dir="/tmp"))
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        self._numbers = itertools.count()
        self._run("initdb", "-D", str(self._data), "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = (
            f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off -c max_connections=100"
        )
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", "60", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """Stop at once, as a machine that is switched off: open transactions are lost."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", "60", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """The address of an empty place: a schema of its own, since a database of its own is a thousand files."""
        name = f"store_{next(self._numbers)}"
        with psycopg.connect(self._address(), autocommit=True) as connection:
            connection.execute(f'CREATE SCHEMA "{name}"'.encode())
        return f"{self._address()}&options=-csearch_path%3D{name}"

    def remove(self) -> None:
        """Stop and forget everything."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _address(self) -> str:
        return f"postgresql://{_USER}@/postgres?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        # Not through a pipe: the server would hold it open for as long as it runs.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [str(self._binaries / program), *arguments],
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user else None,
                cwd=self.folder,
                check=False,
                timeout=120,
            )
            said.seek(0)
            assert done.returncode == 0, f"{program}: {said.read().decode(errors='replace')}"


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL here, or None."""
    found = [path for home in _HOMES for path in Path("/").glob(f"{home[1:]}/initdb")]
    on_path = shutil.which("initdb")
    found += [Path(on_path).resolve()] if on_path else []
    return max(found, key=lambda path: [int(part) for part in path.parts if part.isdigit()]).parent if found else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A running cluster, shared by all tests; who stops it starts it again."""
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed (no initdb); on Debian: apt-get install postgresql")
    cluster = Cluster(found)
    try:
        yield cluster
    finally:
        cluster.remove()
