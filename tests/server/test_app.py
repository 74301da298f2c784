"""The app as a whole: its description needs no model, its parts come and go with it, and nothing about it stays behind."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from tests.engine.rig import make_engine, push
from tests.server.rig import app_over, asking, error_of, settings_in

from steersman.errors import DataError, NotFound, RecipeError, RecipeMismatch, StorageError
from steersman.models.language_model import LanguageModel
from steersman.server.app import create_app
from steersman.server.errors import ERRORS
from steersman.server.settings import ServerSettings
from steersman.steering.recipe_file import save_recipe
from steersman.store.store import Store
from steersman.version import __version__


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The description of an app that was never started; nothing is where it would look."""
    return create_app(ServerSettings(folder=tmp_path_factory.mktemp("x") / "never", model="no/such-model")).openapi()


def test_the_description_needs_no_model_and_writes_nothing(tmp_path: Path) -> None:
    app = create_app(
        settings_in(tmp_path / "never", model="no/such-model", database="postgresql://nobody@nowhere/none")
    )
    assert app.openapi()["info"] == {**app.openapi()["info"], "title": "steersman", "version": __version__}
    assert list(tmp_path.iterdir()) == []


def test_the_description_is_the_same_every_time(described: dict[str, Any], tmp_path: Path) -> None:
    again = create_app(settings_in(tmp_path, max_tokens=3)).openapi()
    assert json.dumps(described) == json.dumps(again)


def test_every_operation_says_how_it_fails(described: dict[str, Any]) -> None:
    seen = set()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["operationId"] not in seen, f"{where}: its id is taken"
            seen.add(operation["operationId"])
            assert re.fullmatch("[a-z][a-z0-9_]*", operation["operationId"]), where
            assert "422" not in operation["responses"], where
            assert "500" in operation["responses"], where
            if path not in ("/healthz", "/readyz", "/"):
                missing = {str(status) for status in ERRORS} - set(operation["responses"])
                assert not missing, f"{where} does not say {missing}"
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}, f"{where} {status}"


def test_requests_refuse_fields_that_they_do_not_know(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    assert "HTTPValidationError" not in json.dumps(described)
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            assert set(content) <= {"application/json"}, f"{method} {path}"
            for each in content.values():
                for name in re.findall('#/components/schemas/([^"]+)', json.dumps(each)):
                    if "properties" in schemas[name]:
                        assert schemas[name].get("additionalProperties") is False, f"{method} {path}: {name}"


def test_keys_are_part_of_the_description(described: dict[str, Any]) -> None:
    scheme = described["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def test_no_page_of_it_loads_anything_from_elsewhere(app: FastAPI) -> None:
    with asking(app) as client:
        for path in ("/docs", "/redoc"):
            error_of(client.get(path), 404)
        assert client.get("/openapi.json").json()["info"]["title"] == "steersman"


def test_what_it_opened_is_closed_and_what_it_was_given_is_not(tiny: LanguageModel, store: Store) -> None:
    before = threading.active_count()
    app = app_over(tiny, store, job_workers=2)
    with asking(app) as client:
        body = {"model": "default", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert threading.active_count() > before
    store.ping()
    left = [thread.name for thread in threading.enumerate() if "job" in thread.name or "pump" in thread.name]
    assert left == []


def test_a_store_of_its_own_is_opened_and_closed(tiny: LanguageModel, tmp_path: Path) -> None:
    app = create_app(settings_in(tmp_path / "own"), engine=make_engine(tiny))
    with asking(app) as client:
        assert client.get("/readyz").status_code == 200
        assert (tmp_path / "own" / "steersman.db").is_file()
    with Store.open(None, tmp_path / "own") as store:
        assert store.keys.list() == []


def test_the_default_steering_is_a_file_or_a_trait_for_this_model(
    tiny: LanguageModel, store: Store, tmp_path: Path
) -> None:
    body = {"model": "default", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
    save_recipe(push(strength=5.0), tmp_path / "push.json")
    answers = []
    for changes in ({}, {"steering": tmp_path / "push.json"}):
        with asking(app_over(tiny, store, **changes)) as client:
            answers.append(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("steering", None, RecipeError),
        ("steering", "{}", RecipeError),
        ("routes", None, DataError),
        ("routes", "[[route]]\nrecip = 1", DataError),
    ],
)
def test_a_recipe_or_table_that_cannot_be_used_stops_the_start(
    tiny: LanguageModel, store: Store, tmp_path: Path, name: str, text: str | None, error: type[Exception]
) -> None:
    path = tmp_path / "given.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=r"given\.json"), asking(app_over(tiny, store, **{name: path})):
        pass


def test_a_recipe_of_another_model_or_a_trait_that_is_not_there_stops_the_start(
    tiny: LanguageModel, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(NotFound), asking(app_over(tiny, store, steering=Path("no-such-trait"))):
        pass
    other = dataclasses.replace(tiny.ref, config_hash="0" * 64)
    save_recipe(dataclasses.replace(push(), model=other), tmp_path / "other.json")
    with (
        pytest.raises(RecipeMismatch, match=r"other\.json"),
        asking(app_over(tiny, store, steering=tmp_path / "other.json")),
    ):
        pass


@pytest.mark.parametrize(
    "url", ["postgresql://nobody:hush@127.0.0.1:1/none", "sqlite:////dev/null/x.db", "mysql://x/y"]
)
def test_a_database_that_is_not_there_stops_the_start(tiny: LanguageModel, tmp_path: Path, url: str) -> None:
    app = create_app(settings_in(tmp_path, database=url), engine=make_engine(tiny))
    with pytest.raises((StorageError, DataError)) as caught, asking(app):
        pass
    assert "hush" not in str(caught.value)


def test_starting_and_asking_leaves_the_logs_setup_alone(app: FastAPI) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("steersman").level)
    with asking(app) as client:
        client.get("/healthz")
    assert (root.level, list(root.handlers), logging.getLogger("steersman").level) == before
