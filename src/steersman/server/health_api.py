"""Is it alive, is it ready, what has it counted: for load balancers and Prometheus. Nothing here needs a model to answer."""

from __future__ import annotations

from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from steersman.errors import Busy, StorageError
from steersman.server.auth import Caller, needs
from steersman.server.context import Deps
from steersman.server.errors import ERRORS

router = APIRouter(tags=["health"])
_RETRY_S = 2.0


class Health(BaseModel):
    """How the server is."""

    model_config = ConfigDict(extra="forbid")
    status: Literal["ok"]


@router.get("/healthz", operation_id="health", responses={500: ERRORS[500]})
async def healthz() -> Health:
    """Whether the process answers at all."""
    return Health(status="ok")


@router.get("/readyz", operation_id="ready", responses={code: ERRORS[code] for code in (500, 503, 504)})
async def readyz(request: Request, deps: Deps) -> Health:
    """Whether it takes work: the model is loaded, the store can be reached, and it is not ending."""
    if request.app.state.draining.is_on:
        raise Busy("the server is ending", retry_after_s=_RETRY_S)
    await anyio.to_thread.run_sync(deps.store.ping)
    return Health(status="ok")


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={**ERRORS, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(deps: Deps, caller: Annotated[Caller, needs("admin")]) -> Response:
    """What the server has counted, for Prometheus."""
    try:
        deps.metrics.jobs(await anyio.to_thread.run_sync(deps.store.jobs.counts))
    except StorageError:
        deps.metrics.jobs({})  # The other numbers matter most when something is broken.
    return Response(await anyio.to_thread.run_sync(deps.metrics.text), media_type="text/plain; version=0.0.4")
