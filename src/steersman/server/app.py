"""Put a server together: its parts, its guard rails, its routes, its description. Knows nothing of sockets or signals.

Making an app loads nothing, so that its OpenAPI description needs no model; its parts are made when it starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from steersman.engine.engine import Engine
from steersman.server import errors, features_api, health_api, jobs_api, openai_api, recipes_api, sets_api
from steersman.server.auth import Door, Gate
from steersman.server.bodies import BodyLimit, most_held
from steersman.server.context import Context
from steersman.server.draining import Drain, Draining
from steersman.server.limits import RateLimiter, TimeLimit
from steersman.server.linger import Linger
from steersman.server.logs import AccessLog
from steersman.server.metrics import Metrics
from steersman.server.parts import open_context
from steersman.server.queries import known_query
from steersman.server.request_ids import RequestIds
from steersman.server.settings import ServerSettings
from steersman.store.store import Store
from steersman.version import __version__

_DESCRIPTION = (
    "Steering of language models over HTTP: OpenAI's protocol with a recipe for each request, sets of steering vectors, "
    "recipes, features, and long work as jobs. Every error has the form of `ErrorBody`."
)
_UPLOADS = ("/v1/recipes",)
_HEADERS = ("Authorization", "Content-Type", "X-Request-Id", "Last-Event-ID")


def create_app(settings: ServerSettings, *, engine: Engine | None = None, store: Store | None = None) -> FastAPI:
    """The server as an ASGI app.

    Args:
        settings: what it allows and where things are.
        engine: answers; by default one over the model that the settings name, loaded when the app starts.
        store: keeps; by default opened when the app starts. What is handed in is not closed.
    """
    metrics, draining = Metrics(), Draining()
    app = FastAPI(
        title="steersman",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=_lifespan(settings, engine, store),
        dependencies=[Depends(known_query)],
        middleware=_guard_rails(settings, metrics, draining),
        docs_url=None,  # Their pages load scripts from elsewhere.
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.draining, app.state.metrics = draining, metrics
    errors.install(app)
    for routes in (openai_api, sets_api, recipes_api, jobs_api, features_api, health_api):
        app.include_router(routes.router)
    app.openapi = _description(app)  # type: ignore[method-assign]
    return app


def prepare(app: FastAPI, context: Context) -> None:
    """Give an app its parts before it starts, so that what is wrong with them is known before it listens.

    Raises:
        StorageError: the store cannot say whether there are keys.
    """
    settings = context.settings
    app.state.gate = Gate(settings, context.store.keys, RateLimiter(settings.rate_per_minute, settings.rate_burst))
    app.state.context = context


async def wind_down(app: FastAPI) -> None:
    """Take no new work, let what runs finish within the settings' `grace_s`, give jobs back. Doing it twice does no harm."""
    context, draining = cast("Context", app.state.context), cast("Draining", app.state.draining)
    draining.begin()

    async def stop_jobs() -> None:
        await anyio.to_thread.run_sync(context.runner.stop, context.settings.grace_s)
        draining.send_listeners_away()

    async with anyio.create_task_group() as group:
        group.start_soon(stop_jobs)
        await draining.finish(context.settings.grace_s)


def _lifespan(
    settings: ServerSettings, engine: Engine | None, store: Store | None
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with contextlib.ExitStack() as owned:
            if getattr(app.state, "context", None) is None:
                made = await anyio.to_thread.run_sync(
                    lambda: open_context(settings, engine, store, app.state.metrics, owned)
                )
                prepare(app, made)
            context: Context = app.state.context
            context.metrics.watch(lambda: context.pump.running, lambda: context.pump.waiting)
            context.runner.start()
            try:
                yield
            finally:
                await wind_down(app)
                await context.pump.drain(0.0)
                await anyio.to_thread.run_sync(context.pump.close)
                app.state.context = None

    return lifespan


def _guard_rails(settings: ServerSettings, metrics: Metrics, draining: Draining) -> list[Middleware]:
    """Outermost first."""
    uploads = max(settings.max_upload_bytes, settings.max_body_bytes)
    shared = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.allowed_origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=list(_HEADERS),
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    return [
        Middleware(Linger),
        Middleware(RequestIds, is_shared=bool(settings.allowed_origins)),
        Middleware(AccessLog, metrics=metrics, log_prompts=settings.log_prompts),
        *([shared] if settings.allowed_origins else []),
        Middleware(Drain, draining=draining),
        Middleware(TimeLimit, seconds=settings.request_timeout_s),
        Middleware(Door),
        Middleware(
            BodyLimit,
            most_bytes=lambda path: uploads if path.startswith(_UPLOADS) else settings.max_body_bytes,
            most_held_bytes=most_held(uploads),
            is_logged=settings.log_prompts,
        ),
    ]


def _description(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """FastAPI's OpenAPI document, made once, without its 422: what does not fit is answered with 400 here."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            for path in made["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schemas = made.get("components", {}).get("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            app.openapi_schema = made
        return app.openapi_schema

    return describe
