"""The app against its own description: sound and unsound requests of every kind, each answered as documented, never with 5xx.

The answers come over a real port. Some requests name what is there (a recipe, a job that has ended, a set), others what is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from tests.server.feature_rig import toy_lookup
from tests.server.rig import Served, app_over, error_of, serving, settings_in

from steersman.models.language_model import LanguageModel
from steersman.server.app import create_app
from steersman.server.recipe_wire import untrusted_recipe
from steersman.store import job_rows
from steersman.store.store import Store

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
_NAMES = ("recipe_id", "job_id", "set_id", "model_id", "steerable_model_id", "id")
_DIMENSIONS: Any = {"warm": {"positive_examples": ["kind"], "negative_examples": ["cold"]}}
_numbers = itertools.count()


class Rig(NamedTuple):
    """A running server and what is known to be in its store."""

    served: Served
    store: Store
    session: requests.Session


def _operations() -> list[Any]:
    """Every operation of the app, with sound and with unsound data, where there are any; making an app loads nothing."""
    described = create_app(settings_in(Path("unused"))).openapi()
    config = schemathesis.Config.from_dict(
        {
            "generation": {"with-security-parameters": False},  # An open server wants no key.
            "checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}},  # By itself it does not know 413.
        }
    )
    schema = schemathesis.openapi.from_dict(described, config=config)
    made = []
    for operation in (found.ok() for found in schema.get_all_operations()):
        made.append(pytest.param(operation, GenerationMode.POSITIVE, id=f"{operation.label} positive"))
        places = {parameter.location.name for parameter in operation.iter_parameters()}
        if operation.body or places:
            # Unsound ids alone take seconds to make up; `test_bodies` has many of them.
            marks = [] if operation.body or places - {"PATH"} else [pytest.mark.slow]
            made.append(pytest.param(operation, GenerationMode.NEGATIVE, id=f"{operation.label} negative", marks=marks))
    return made


_OPERATIONS = _operations()


@pytest.fixture(scope="module")
def rig(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("schemathesis")
    with Store.open(None, folder / "server") as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_rows, "MOST_OPEN_JOBS", 1 << 20)  # Each case has a job or a set of its own.
        app = app_over(tiny, store, max_tokens=4)
        app.state.features = toy_lookup(tiny, folder / "cache")
        with serving(app, settings_in(store.folder, max_tokens=4)) as served, requests.Session() as session:
            yield Rig(served, store, session)


def _there(store: Store, name: str) -> str:
    """The id of something new of the kind that a path's parameter names."""
    number = next(_numbers)
    if name == "recipe_id":
        facts = {
            "steersman_recipe": 1,
            "name": f"r{number}",
            "edits": [{"kind": "add", "layer": 1, "vector": [1.0] * 32}],
        }
        return store.recipes.add("local", untrusted_recipe(facts)).id
    if name == "job_id":
        # Ended, so that the stream of its events ends too.
        job = store.jobs.create("local", "fit", {"kind": "fit"})
        return store.jobs.cancel("local", job.id).id
    made = store.sets.create(
        "local", f"s{number}", model="tiny-llama", method="lat", dimensions=_DIMENSIONS, prompts=None, request={}
    )
    return made.id


def _check(rig: Rig, case: Any, *, is_there: bool, checks: list[Callable[..., Any]]) -> None:
    named = [name for name in _NAMES if name in (case.path_parameters or {})]
    if is_there and named:
        case.path_parameters[named[0]] = _there(rig.store, named[0])
    response = case.call(base_url=rig.served.url, session=rig.session, timeout=60)
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        # The description says that a stream is text; what its events hold is for the tests of its route.
        checks = [check for check in checks if check is not response_schema_conformance]
    case.validate_response(response, checks=checks)
    if response.status_code >= 400:
        error_of(_Plain(response), response.status_code)


class _Plain:
    """A response as `error_of` reads it."""

    def __init__(self, response: Any) -> None:
        self.status_code, self._response = response.status_code, response
        self.text = (response.content or b"").decode()
        self.headers = {name.lower(): values[0] for name, values in response.headers.items()}

    def json(self) -> Any:
        return self._response.json()


def _try(rig: Rig, operation: APIOperation[Any, Any, Any], mode: GenerationMode, examples: int) -> None:
    checks = [*_CHECKS, *([negative_data_rejection] if mode is GenerationMode.NEGATIVE else [])]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,  # A run that fails fails again.
        phases=[Phase.explicit, Phase.generate],  # No shrinking: a failure shall come soon, and says its request.
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), is_there=st.booleans())
    def run(case: Any, is_there: bool) -> None:
        # An unsound id stays as it is.
        _check(rig, case, is_there=is_there and mode is GenerationMode.POSITIVE, checks=checks)

    run()


@pytest.mark.parametrize(("operation", "mode"), _OPERATIONS)
def test_every_operation_answers_as_it_is_documented(rig: Rig, operation: Any, mode: GenerationMode) -> None:
    _try(rig, operation, mode, examples=6)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "mode"), _OPERATIONS)
def test_every_operation_answers_as_it_is_documented_whatever_comes(
    rig: Rig, operation: Any, mode: GenerationMode
) -> None:
    _try(rig, operation, mode, examples=150)


def test_every_operation_has_a_name_a_summary_and_the_error_form() -> None:
    described = create_app(settings_in(Path("unused"))).openapi()
    names = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            names.append(operation["operationId"])
            assert operation.get("summary"), f"{method} {path}"
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")) and not path.startswith(("/healthz", "/readyz")):
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}, f"{method} {path} {status}"
    assert len(set(names)) == len(names)
