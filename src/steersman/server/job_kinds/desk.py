"""What a job's work is given and hands back. Knows nothing of threads, leases or SQL.

A kind of job is an object with a `run`; it tells what happens as it happens, and is stopped where it tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from steersman.engine.engine import Engine
from steersman.models.asking import Ask
from steersman.steering.recipe import Recipe
from steersman.store.facts import JobRecord


class Stopped(Exception):
    """The job is to stop where it stands: it was cancelled, its lease is lost, or the server ends. No error: let it pass."""


class Tell(Protocol):
    """Called with the name of an event and its facts."""

    def __call__(self, kind: str, data: Mapping[str, object], /) -> None:
        """Keep the event for whoever watches the job.

        Raises:
            Stopped: the job is to stop.
        """


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a job is worked on."""

    engine: Engine
    """The server's; what people ask for goes ahead."""
    folder: Path
    """For what is to be found again when the job is begun once more; made when first written to, removed when the job ends."""
    tell: Tell
    ask: Ask | None = None
    """A language model behind an endpoint, where the server has one."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a job came to; kept as a whole or not at all."""

    result: dict[str, JsonValue]
    """For whoever asks for the job."""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    """Recipes that its owner gets, by name."""
    vectors: Mapping[str, Recipe] = field(default_factory=dict)
    """Recipes of the set that it fits, by trait."""


class Kind(Protocol):
    """One kind of job."""

    def run(self, job: JobRecord, desk: Desk) -> Done:
        """Do the work; begun again with the same folder when the process died.

        Raises:
            Stopped: as `Tell`.
            SteersmanError: it cannot be done; the message becomes the job's reason.
        """


def as_json(value: object) -> JsonValue:
    """The same as plain JSON: names as texts, tuples as lists, None for NaN and infinity, which JSON has not.

    Raises:
        TypeError: something that no JSON can say.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(each) for each in value]
    raise TypeError(f"{type(value).__name__} is not JSON")
