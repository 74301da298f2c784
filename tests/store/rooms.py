"""What tests of the store share: where one is, what time it is there, and small recipes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector
from steersman.store.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Room:
    """Where a store is kept."""

    kind: str
    url: str | None
    folder: Path

    def open(self) -> Store:
        """Open it by the real clock."""
        return Store.open(self.url, self.folder)

    def tensor_files(self) -> list[Path]:
        """All files of tensors, finished or not."""
        return sorted(path for path in (self.folder / "tensors").rglob("*") if path.is_file())


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: datetime = field(default_factory=lambda: datetime(2030, 1, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        """Let time go by."""
        self.now += timedelta(seconds=seconds)


def small_recipe(name: str = "cheerful", number: float = 1.0) -> Recipe:
    """A recipe of one vector; another number makes other tensors."""
    return Recipe(
        name=name, edits=(Add(layer=1, vector=Vector([number, 2.0, 3.0])),), description="more cheer", method="test"
    )


def at_once(threads: int, work: Callable[[int], T]) -> list[T]:
    """What `work` gives for 0, 1, … when all run at the same time; the first error is raised."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(threads)))
