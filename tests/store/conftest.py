"""A store in SQLite and one in PostgreSQL: every law holds in both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.postgres import postgres
from tests.store.rooms import Clock, Room

from steersman.store.store import Store

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgresql"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Room:
    """Where a store may be opened, as often as one likes; empty."""
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else None
    return Room(request.param, url, tmp_path / "store")


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until it is moved."""
    return Clock()


@pytest.fixture
def store(room: Room, clock: Clock) -> Iterator[Store]:
    """An empty store that follows `clock`."""
    with Store.open(room.url, room.folder, clock=clock) as opened:
        yield opened
