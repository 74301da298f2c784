"""Every error has one form; bodies that nothing can use never reach a route; a misspelt field is told what was probably meant."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

import pytest
from fastapi import FastAPI, Query
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from tests.server.rig import Served, app_over, asking, error_of

from steersman import errors
from steersman.facts import fact
from steersman.models.language_model import LanguageModel
from steersman.server.bodies import check_json
from steersman.server.errors import ErrorBody, Refusal, as_refusal
from steersman.store.store import Store

JSON = {"Content-Type": "application/json"}


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    strength: float = Field(default=1.0, ge=-10, le=10)
    mode: Literal["add", "replace"] = "add"


@fact
class Point:
    width: int
    height: int = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=20)
    steering: Inner | None = None
    items: list[Inner] = []
    by_name: dict[str, Inner] = {}
    either: str | list[str] | None = None
    pick: list[int] | Inner | None = None
    shape: Point | None = None


@pytest.fixture
def odd(app: FastAPI) -> FastAPI:
    """The app with routes that take and raise what a test wants."""

    @app.post("/take")
    async def take(body: Outer, limit: int = Query(default=1, ge=1, le=5)) -> dict[str, Any]:
        return {"name": body.name}

    @app.put("/take/{number}")
    async def take_number(number: int) -> int:
        return number

    return app


# --- classes and statuses

_TREE = [
    kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.SteersmanError)
]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.NotFound("x"), 404, "not_found_error"),
        (errors.Conflict("x"), 409, "conflict_error"),
        (errors.RecipeMismatch("x"), 409, "conflict_error"),
        (errors.RecipeError("x"), 400, "invalid_request_error"),
        (errors.RequestError("x"), 400, "invalid_request_error"),
        (errors.SaeError("x"), 400, "invalid_request_error"),
        (errors.DataError("x"), 400, "invalid_request_error"),
        (errors.AccessRefused("x"), 401, "authentication_error"),
        (errors.AccessRefused("x", is_known=True), 403, "permission_error"),
        (errors.Busy("x", retry_after_s=0.2), 503, "unavailable_error"),
        (errors.Busy("x", retry_after_s=6.5, is_callers=True), 429, "rate_limit_error"),
        (errors.StorageError("x"), 503, "unavailable_error"),
        (errors.AssetError("x"), 503, "unavailable_error"),
        (errors.UnsupportedModel("x"), 503, "unavailable_error"),
        (errors.EndpointError("x"), 502, "endpoint_error"),
        (errors.SteersmanError("x"), 400, "invalid_request_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_error_has_its_status(app: FastAPI, error: Exception, status: int, kind: str) -> None:
    @app.get("/raise")
    def raise_it() -> None:
        raise error

    with asking(app) as client:
        found = client.get("/raise")
    assert error_of(found, status)["type"] == kind
    assert ("www-authenticate" in found.headers) == (status == 401)
    if isinstance(error, errors.Busy):
        assert int(found.headers["retry-after"]) >= error.retry_after_s


@pytest.mark.parametrize("kind", _TREE, ids=lambda kind: kind.__name__)
def test_no_error_of_the_tree_is_a_mistake_of_the_server(kind: type[errors.SteersmanError]) -> None:
    made = kind("x", status=1, kind="x") if kind is errors.ApiError else kind("two\n lines")  # type: ignore[call-arg]
    refusal = as_refusal(made)
    assert refusal.status != 500
    assert "\n" not in str(refusal)


def test_the_form_of_errors_is_described(app: FastAPI) -> None:
    described = app.openapi()["components"]["schemas"]
    assert set(described["ErrorBody"]["properties"]) == set(ErrorBody.model_fields)
    assert set(described["ErrorDetail"]["required"]) == {"message", "type", "code", "param", "request_id"}


def test_unknown_addresses_and_methods_are_refused_in_the_same_form(client: TestClient) -> None:
    assert "GET /v1/nowhere" in error_of(client.get("/v1/nowhere"), 404)["message"]
    refused = client.delete("/healthz")
    assert error_of(refused, 405)["type"] == "invalid_request_error"
    assert "GET" in refused.headers["allow"]
    error_of(client.get("/healthz/"), 404)
    error_of(client.get("/v1/recipes/..%2f..%2fetc%2fpasswd"), 404)
    error_of(client.get("/v1/recipes/%00"), 400)


# --- fields


@pytest.mark.parametrize(
    ("body", "says", "param"),
    [
        ({"name": "x", "steerin": {}}, "unknown field 'steerin'; did you mean 'steering'?", "steerin"),
        (
            {"name": "x", "steering": {"strenght": 1}},
            "unknown field 'steering.strenght'; did you mean 'strength'?",
            "steering.strenght",
        ),
        (
            {"name": "x", "items": [{}, {"mod": 1}]},
            "unknown field 'items[1].mod'; did you mean 'mode'?",
            "items[1].mod",
        ),
        ({"name": "x", "by_name": {"a": {"mdoe": 1}}}, "did you mean 'mode'?", "by_name.a.mdoe"),
        ({"name": "x", "shape": {"width": 1, "heigth": 1}}, "did you mean 'height'?", "shape.heigth"),
        ({}, "field 'name' is missing", "name"),
        ({"name": "x", "steering": {"strength": 11}}, "less than or equal to 10, not 11", "steering.strength"),
        ({"name": "x", "steering": {"mode": "ad"}}, "'steering.mode'", "steering.mode"),
        ({"name": 3}, "'name': input should be a valid string, not 3", "name"),
        ({"name": "x" * 5000}, "at most 20 characters", "name"),
        ({"name": "x", "either": 3}, "'either': input should be a valid string, not 3; 'either'", "either"),
        ({"name": "x", "either": ["y", 3]}, "'either[1]'", "either[1]"),
        (
            {"name": "x", "pick": {"strenght": 3}},
            "unknown field 'pick.strenght'; did you mean 'strength'?",
            "pick.strenght",
        ),
        ([], "the body must be a JSON object", None),
        ("x", "the body must be a JSON object", None),
        (None, "the body", None),
    ],
)
def test_a_field_that_does_not_fit_is_named(odd: FastAPI, body: Any, says: str, param: str | None) -> None:
    with asking(odd) as client:
        error = error_of(client.post("/take", content=json.dumps(body), headers=JSON), 400)
    assert says in error["message"]
    assert error["param"] == param
    assert error["code"] == "invalid_request"
    assert len(error["message"]) < 600


def test_queries_and_paths_are_named_too(odd: FastAPI) -> None:
    with asking(odd) as client:
        assert "'limit' of the query" in error_of(client.post("/take?limit=9", json={"name": "x"}), 400)["message"]
        assert "'number' of the path" in error_of(client.put("/take/three"), 400)["message"]


def test_a_huge_number_of_wrong_fields_makes_a_short_message(odd: FastAPI) -> None:
    with asking(odd) as client:
        error = error_of(client.post("/take", json={f"f{n}": n for n in range(5000)}), 400)
    assert "more)" in error["message"]
    assert len(error["message"]) < 600


# --- bodies

_UNSOUND = {
    "nan": b'{"name": NaN}',
    "infinity": b'{"name": "x", "steering": {"strength": Infinity}}',
    "minus infinity": b'[-Infinity, {"name": 1}]',
    "too large": b'{"steering": {"strength": 1e999}}',
    "many digits": b'{"steering": {"strength": ' + b"9" * 400 + b".5}}",
    "many whole digits": b'{"steering": {"strength": ' + b"9" * 400 + b"}}",
    "half a character": rb'{"name": "\ud800"}',
    "half a character in a key": rb'{"\uDFff": 1}',
    "nul": rb'{"name": "a\u0000b"}',
    "no utf-8": b'{"name": "\xff\xfe"}',
    "utf-16": '{"name": "x"}'.encode("utf-16"),
    "broken": b'{"name": ',
    "deep": b"[" * 100_000,
    "two values": b'{"name": "x"} {"name": "y"}',
    "empty": b"",
}


@pytest.mark.parametrize("body", _UNSOUND.values(), ids=list(_UNSOUND))
def test_what_is_no_sound_json_is_refused(odd: FastAPI, body: bytes) -> None:
    with asking(odd) as client:
        error_of(client.post("/take", content=body, headers=JSON), 400)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"name": "\\ud800 \\u0000 NaN"}',
        rb'{"name": "\ud83d\ude00"}',
        b'{"name": "1e999 Infinity"}',
        b'{"name": "x"}',
    ],
)
def test_what_only_looks_unsound_passes(odd: FastAPI, body: bytes) -> None:
    with asking(odd) as client:
        assert client.post("/take", content=body, headers=JSON).json() == {"name": json.loads(body)["name"]}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("aNI\\", max_size=4), inner, max_size=4),
)  # fmt: skip


@given(_VALUES, st.booleans())
def test_sound_json_is_never_refused(value: Any, ascii_only: bool) -> None:
    check_json(json.dumps(value, ensure_ascii=ascii_only).encode())


@given(_VALUES, st.sampled_from([float("nan"), float("inf"), -float("inf"), "\ud800", "a\0", "\udfff"]))
def test_unsound_json_is_always_refused(value: Any, bad: Any) -> None:
    with pytest.raises(Refusal):
        check_json(json.dumps([value, {"x": [bad]}]).encode())


@given(st.binary(max_size=60))
def test_any_bytes_are_checked_without_a_crash(body: bytes) -> None:
    try:
        check_json(body)
    except Refusal as refusal:
        assert refusal.status == 400


@pytest.mark.parametrize(
    "kind",
    ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "text/json", "", None],
)
def test_a_form_never_reaches_a_route(client: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    body = b'{"model": "base", "messages": [{"role": "user", "content": "x"}]}'
    error_of(client.post("/v1/chat/completions", content=body, headers=headers), 415)
    if kind:
        error_of(client.post("/v1/chat/completions", content=b"", headers=headers), 415)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_by_any_of_its_names_does(odd: FastAPI, kind: str) -> None:
    with asking(odd) as client:
        assert client.post("/take", content=b'{"name": "x"}', headers={"Content-Type": kind}).status_code == 200


def test_a_body_that_is_too_large_is_refused_with_and_without_a_length(tiny: LanguageModel, store: Store) -> None:
    with asking(app_over(tiny, store, max_body_bytes=1000, max_upload_bytes=5000)) as client:
        body = json.dumps({"name": "x" * 2000}).encode()
        error_of(client.post("/v1/jobs", content=body, headers=JSON), 413)
        error_of(client.post("/v1/jobs", content=iter([body[:500], body[500:]]), headers=JSON), 413)
        error_of(client.post("/v1/recipes", content=body, headers=JSON), 400)
        error_of(client.post("/v1/recipes", content=body * 3, headers=JSON), 413)
        error_of(client.post("/v1/jobs", content=b"{}", headers={**JSON, "Content-Length": "9" * 30}), 413)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served: Served) -> None:
    def endless() -> Any:
        while True:
            yield b" " * 65536

    began = time.perf_counter()
    with served.client() as client:
        try:
            answer = client.post("/v1/jobs", content=endless(), headers=JSON)
        except Exception as error:  # noqa: BLE001 - the connection is cut while the body is still being sent
            assert "losed" in str(error) or "reset" in str(error).lower() or "pipe" in str(error).lower()
        else:
            error_of(answer, 413)
    assert time.perf_counter() - began < 20


def test_bodies_together_have_a_bound(tiny: LanguageModel, store: Store) -> None:
    with asking(app_over(tiny, store, max_body_bytes=100, max_upload_bytes=100)) as client:
        limit = _layer(client.app)
        limit._held = 10**9
        error_of(client.post("/v1/jobs", content=b"{}", headers=JSON), 503)
        limit._held = 0
        for _ in range(20):  # What is refused or done gives back what it held.
            client.post("/v1/jobs", content=b"{" + b" " * 90, headers=JSON)
            client.post("/v1/jobs", content=b"{" + b" " * 200, headers=JSON)
        assert limit._held == 0


def _layer(app: Any) -> Any:
    """The body's layer in the app's stack."""
    layer = app.middleware_stack
    while type(layer).__name__ != "BodyLimit":
        layer = vars(layer).get("_app") or vars(layer)["app"]
    return layer
