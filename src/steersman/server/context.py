"""What every route is given: the parts that one running server is made of. Nothing here imports a route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from steersman.engine.engine import Engine
from steersman.errors import Busy
from steersman.server.events import Watchers
from steersman.server.jobs import JobRunner
from steersman.server.metrics import Metrics
from steersman.server.pump import Pump
from steersman.server.settings import ServerSettings
from steersman.server.steering import Steering
from steersman.store.store import Store

_RETRY_S = 2.0


@dataclass(frozen=True)
class Context:
    """One running server."""

    settings: ServerSettings
    engine: Engine
    pump: Pump
    """Drives the engine; routes generate through it."""
    store: Store
    """Blocking; call it from a thread."""
    runner: JobRunner
    steering: Steering
    metrics: Metrics
    watchers: Watchers


def get_context(request: Request) -> Context:
    """The server that a request came to.

    Raises:
        Busy: it has not started yet, or has ended.
    """
    context: Context | None = getattr(request.app.state, "context", None)
    if context is None:
        raise Busy("the server is not ready; ask again in a moment", retry_after_s=_RETRY_S)
    return context


Deps = Annotated[Context, Depends(get_context)]
"""The type of a route's parameter that takes the context."""
