"""Make the parts of a server from its settings: model, store, pump, jobs, steering. Knows nothing of HTTP."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path

from steersman.engine.engine import Engine, EngineLimits
from steersman.errors import RecipeMismatch
from steersman.files import is_there
from steersman.models.asking import Ask
from steersman.models.endpoint import Endpoint
from steersman.models.language_model import LanguageModel
from steersman.models.load import load_model
from steersman.server.context import Context
from steersman.server.events import Watchers
from steersman.server.job_kinds import KINDS
from steersman.server.jobs import JobRunner
from steersman.server.metrics import Metrics
from steersman.server.pump import Pump
from steersman.server.routing import Router
from steersman.server.settings import ServerSettings
from steersman.server.steering import Steering
from steersman.settings import Settings
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe
from steersman.steering.traits import load_trait
from steersman.store.store import Store

_KEPT_TRAITS = 256
_DAY_S = 86_400.0


def open_context(
    settings: ServerSettings,
    engine: Engine | None,
    store: Store | None,
    metrics: Metrics,
    owned: contextlib.ExitStack,
) -> Context:
    """All parts of a server; nothing runs yet.

    Args:
        settings: what it allows and where things are.
        engine: by default one over the model that the settings name.
        store: by default opened as the settings say.
        metrics: what it counts.
        owned: closes what is opened here.

    Raises:
        ModelError: no such model, or no such encoder for the routes.
        StorageError: the database does not answer, or the folder cannot be written.
        RecipeError, DataError: the default recipe or the table of routes cannot be used.
    """
    if store is None:
        store = owned.enter_context(Store.open(settings.database, settings.folder))
    if engine is None:
        model = load_model(settings.model, device=settings.device, dtype=settings.dtype)
        engine = owned.enter_context(open_engine(settings, model))
    default = None if settings.steering is None else _default(settings.steering, engine)
    router = None if settings.routes is None else Router.from_file(settings.routes, model=engine.model)
    if router is not None:
        router.refuse_useless()  # What is wrong with the table is better known now than at the first request.
    store.sweep()
    return Context(
        settings=settings,
        engine=engine,
        pump=Pump(engine, max_queue=settings.max_queue),
        store=store,
        runner=JobRunner(
            store,
            engine,
            KINDS,
            workers=settings.job_workers,
            ask=_ask(),
            keep_jobs_s=settings.keep_jobs_days * _DAY_S,
        ),
        steering=Steering(store, default, engine.model.ref, lru_cache(_KEPT_TRAITS)(load_trait), router),
        metrics=metrics,
        watchers=Watchers(settings.max_watchers, settings.max_watchers_per_key),
    )


def open_engine(settings: ServerSettings, model: LanguageModel) -> Engine:
    """The engine that answers requests."""
    return Engine(model, EngineLimits(slots=settings.slots))


def _default(path: Path, engine: Engine) -> Recipe:
    """The recipe that steers by default: a file, or a trait by its name.

    Raises:
        RecipeError, NotFound: no such file or trait, or it is damaged.
        RecipeMismatch: for another model.
        SaeError: its SAE is not here.
    """
    is_trait = not is_there(path) and path.name == str(path) and not path.suffix
    recipe = load_trait(str(path)) if is_trait else load_recipe(path)
    try:
        recipe.check_fits(engine.model)
    except RecipeMismatch as error:
        raise RecipeMismatch(f"{path} cannot steer this server: {error}") from error
    engine.saes_for(recipe)
    return recipe


def _ask() -> Ask | None:
    """The language model that the environment names for jobs to ask; none without one.

    Raises:
        EndpointError: its address cannot be used.
    """
    env = Settings.from_env()
    return Endpoint.from_settings(env) if env.llm_url and env.llm_model else None
