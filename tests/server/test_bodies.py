"""Bodies and addresses that nobody should send, to every operation: refused in the documented form, nothing harmed."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.feature_rig import toy_lookup
from tests.server.rig import app_over, asking, bearer, error_of, key_for, settings_in
from tests.tiny import D_MODEL

from steersman.models.language_model import LanguageModel
from steersman.server.app import create_app
from steersman.server.recipe_wire import inline, untrusted_recipe
from steersman.store.store import Store

_CHECKOUT = Path(__file__).parents[2]
_EDIT: dict[str, Any] = {
    "kind": "add",
    "layer": 1,
    "vector": [1.0, -2.0] * (D_MODEL // 2),
    "strength": 0.5,
    "where": {"scope": "generated", "start": 0, "stop": 9, "positions": [1, -1], "token_ids": [5]},
    "schedule": {"kind": "ramp", "tokens": 3},
    "when": {"kind": "token", "token_ids": [7]},
}
_FACTS = {"steersman_recipe": 1, "name": "sound", "edits": [_EDIT], "data": {"seed": 1}}
_STEERING = {"recipes": {"kept": 0.5}, "edits": [_EDIT], "strength": 1.5, "mode": "add", "guard": "soften"}
_PAIRS = [{"positive": "aye", "negative": "yes"}, {"positive": "arr", "negative": "well"}]
_DIMENSIONS = {"warm": {"positive_examples": ["kind"], "negative_examples": ["cold"]}}
_SOUND: dict[str, dict[str, Any]] = {
    "create_chat_completion": {
        "model": "default",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "n": 2,
        "stop": ["."],
        "logprobs": True,
        "top_logprobs": 2,
        "stream": False,
        "steering": _STEERING,
        "compare": True,
    },
    "create_completion": {
        "model": "default:kept",
        "prompt": "a",
        "max_tokens": 2,
        "logprobs": 1,
        "steering": _STEERING,
    },
    "create_set": {
        "model_label": "tone",
        "control_dimensions": _DIMENSIONS,
        "prompt_list": ["I", "You"],
        "layers": [1],
    },
    "create_set_v1": {"model_label": "tone", "control_dimensions": _DIMENSIONS, "prompt_list": None, "method": "caa"},
    "create_steered_completion": {
        "model": "nobody",
        "prompt": "a",
        "control_settings": {"warm": 1.0},
        "settings": {"do_sample": False, "max_new_tokens": 2, "repetition_penalty": 1.1},
    },
    "create_recipe": {"recipe": _FACTS, "name": "new", "tags": ["a"], "description": "b"},
    "tag_recipe": {"tags": ["a", "b"]},
    "create_job": {"kind": "fit", "name": "fitted", "pairs": _PAIRS, "strength": 1.0},
    "contrast_features": {"positive": ["ab", "cd"], "negative": ["ef", "gh"], "limit": 3},
    "inspect_text": {"messages": [{"role": "user", "content": "ahoy"}], "top_k": 2, "read": "all"},
}


def _described() -> list[tuple[str, str, str, bool]]:
    """Operation, method, path and whether it takes a body, of every operation."""
    paths = create_app(settings_in(Path("unused"))).openapi()["paths"]
    return [
        (operation["operationId"], method.upper(), path, "requestBody" in operation)
        for path, operations in paths.items()
        for method, operation in operations.items()
    ]


_OPERATIONS = _described()
_WITH_BODY = [pytest.param(*found[:3], id=found[0]) for found in _OPERATIONS if found[3]]
_WITH_ID = [pytest.param(*found[1:3], found[3], id=found[0]) for found in _OPERATIONS if "{" in found[2]]


@pytest.fixture(scope="module")
def server(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One server for all, with a recipe called `kept`."""
    folder = tmp_path_factory.mktemp("bodies")
    with Store.open(None, folder / "server") as store:
        app = app_over(tiny, store, max_tokens=4)
        with asking(app) as client:
            app.state.features = toy_lookup(tiny, folder / "cache")
            store.recipes.add("local", untrusted_recipe({**_FACTS, "name": "kept"}))
            yield client


def _send(client: TestClient, method: str, path: str, body: bytes, kind: str = "application/json") -> Any:
    """The answer, after checking that it is one of those that are documented."""
    response = client.request(method, re.sub("{.*?}", "kept", path), content=body, headers={"Content-Type": kind})
    assert response.status_code < 500, f"{method} {path} {body[:300]!r} -> {response.text[:300]}"
    if response.status_code >= 400:
        error = error_of(response, response.status_code)
        assert len(error["message"]) < 2000
        assert not re.search(r"site-packages|\.py\b|sqlalchemy|psycopg", response.text)
        assert str(_CHECKOUT) not in response.text
    return response


def test_there_is_a_sound_body_for_every_operation_that_takes_one() -> None:
    assert {found[0] for found in _OPERATIONS if found[3]} == set(_SOUND)


@pytest.mark.parametrize(("operation", "method", "path"), _WITH_BODY)
def test_the_sound_bodies_are_sound(server: TestClient, operation: str, method: str, path: str) -> None:
    response = _send(server, method, path, json.dumps(_SOUND[operation]).encode())
    # There is no set to complete with; whatever is asked before that is in order.
    assert response.status_code == (404 if operation == "create_steered_completion" else response.status_code)
    assert response.status_code < 300 or operation == "create_steered_completion", response.text


# --- what is no sound JSON

_NO_JSON = {
    "empty": b"",
    "space": b"  ",
    "half": b'{"a": ',
    "no JSON": b"model=default",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "overlong UTF-8": b'{"model": "\xc0\xaf"}',
    "UTF-16": '{"model": "x"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"model": "x"}',
    "NaN": b'{"max_tokens": NaN}',
    "infinity": b'{"max_tokens": -Infinity}',
    "huge": b'{"max_tokens": 1e999}',
    "huge integer": b'{"max_tokens": ' + b"9" * 5000 + b"}",
    "half a character": b'{"model": "\\ud800"}',
    "half a character as a field": b'{"\\udfff": 1}',
    "NUL": b'{"model": "\\u0000"}',
    "deep lists": b"[" * 50_000 + b"]" * 50_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep edits": b'{"recipe": {"edits": ' + b"[" * 500 + b"]" * 500 + b"}}",
    "null": b"null",
    "number": b"1",
    "text": b'"x"',
    "list": b"[]",
    "list of pairs": b'[["model", "x"]]',
}


@pytest.mark.parametrize("body", _NO_JSON.values(), ids=_NO_JSON)
def test_what_is_no_sound_json_is_refused_everywhere(server: TestClient, body: bytes) -> None:
    for _, method, path, takes_body in _OPERATIONS:
        if takes_body:
            assert _send(server, method, path, body).status_code == 400


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_web_form_could_send_is_refused_everywhere(server: TestClient, kind: str) -> None:
    for operation, method, path, takes_body in _OPERATIONS:
        if takes_body:
            body = json.dumps(_SOUND[operation]).encode()
            assert _send(server, method, path, body, kind).status_code == 415


@pytest.mark.parametrize(("operation", "method", "path"), _WITH_BODY)
def test_bodies_that_are_too_large_are_refused(
    tiny: LanguageModel, store: Store, operation: str, method: str, path: str
) -> None:
    app = app_over(tiny, store, max_body_bytes=1000, max_upload_bytes=2000)
    with asking(app) as client:
        body = json.dumps({**_SOUND[operation], "padding": "x" * 2000}).encode()
        assert _send(client, method, path, body).status_code == 413
        pieces = client.request(
            method, path, content=iter([b'{"a": "', b"x" * 3000, b'"}']), headers={"Content-Type": "application/json"}
        )
        error_of(pieces, 413)


# --- any JSON, and sound bodies with one thing changed

_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(_texts, items, max_size=3),
    max_leaves=8,
)
_odd = st.sampled_from(
    [
        None, True, False, 0, -1, 1e308, -1e308, 1e-320, 2**31, 2**63, -(2**70), 10**200, 0.1 + 0.2, "", " ", "\n",
        "NaN", "1e999", "../../../etc/passwd", "..\\..\\x", "'; DROP TABLE recipes; --", "x' OR '1'='1",
        "${jndi:ldap://x}", "{{7*7}}", "%s%n", "\u202e", "\ufeff", "😀" * 50, "a" * 5000, [], {}, [[]], [None], {"": 1},
        {"__class__": "x"}, {"$ref": "#"}, "vector:" + "0" * 64, [1.0] * 33, [1e308] * D_MODEL, [0.0] * D_MODEL, ["1"],
        [True, False], {"kept": 1e300}, {"kept": "1"}, [0] * 3000, "default:", "default:kept:kept", ":", "base", "kept",
    ]
)  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from _places(item, (*at, key))


def _changed(body: Any, at: tuple[Any, ...], value: Any, field: str | None) -> Any:
    """The body with another value at a place, or with one more field in the object there."""
    if not at:
        return {**body, field: value} if field is not None and isinstance(body, dict) else value
    body = copy.deepcopy(body)
    holder = body
    for key in at[:-1]:
        holder = holder[key]
    inner = holder[at[-1]]
    holder[at[-1]] = {**inner, field: value} if field is not None and isinstance(inner, dict) else value
    return body


@st.composite
def _requests(draw: st.DrawFn) -> tuple[str, str, bytes]:
    operation, method, path, _ = draw(st.sampled_from([found for found in _OPERATIONS if found[3]]))
    sound = _SOUND[operation]
    at = draw(st.sampled_from(list(_places(sound))))
    body = _changed(
        sound, at, draw(_odd | _json), draw(st.none() | st.sampled_from(["nmae", "", "a-b", "x(y)"]) | _texts)
    )
    return method, path, json.dumps(body).encode()


@settings(deadline=None, max_examples=150)
@given(_requests())
def test_any_change_to_a_sound_body_is_taken_or_refused(server: TestClient, request_: tuple[str, str, bytes]) -> None:
    _send(server, *request_)


@pytest.mark.slow
@settings(deadline=None, max_examples=5000)
@given(_requests())
def test_any_change_to_a_sound_body_is_taken_or_refused_often(
    server: TestClient, request_: tuple[str, str, bytes]
) -> None:
    _send(server, *request_)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([found for found in _OPERATIONS if found[3]]), st.binary(max_size=60))
def test_any_bytes_are_refused(server: TestClient, operation: tuple[str, str, str, bool], body: bytes) -> None:
    assert 400 <= _send(server, operation[1], operation[2], body).status_code < 500


@pytest.mark.parametrize(("operation", "method", "path"), _WITH_BODY)
@pytest.mark.parametrize("field", ["mdoel", "top-k", "a(b)", "a[0]", " ", "a\n b", "constructor", "é", "x" * 300])
def test_an_unknown_field_is_named(server: TestClient, operation: str, method: str, path: str, field: str) -> None:
    response = _send(server, method, path, json.dumps({**_SOUND[operation], field: 1}).encode())
    message = error_of(response, 400)["message"]
    assert "unknown field" in message
    assert " ".join(field[:50].split()) in message


# --- numbers that would break a model


@pytest.mark.parametrize("strength", [1e300, -1e300, 11, -11, 1e39])
def test_huge_multipliers_are_refused_by_name(server: TestClient, strength: float) -> None:
    for steering in (
        {"recipe": "kept", "strength": strength},
        {"recipes": {"kept": strength}},
        {"traits": {"cheerful": strength}},
    ):
        body = {"model": "default", "prompt": "a", "max_tokens": 1, "steering": steering}
        error_of(server.post("/v1/completions", json=body), 400)
    for body in ({"name": "x", "parts": {"kept": strength}}, {"name": "x", "features": {"1": 1}, "strength": strength}):
        error_of(server.post("/v1/recipes", json=body), 400)


def test_one_callers_absurd_edits_do_not_disturb_anothers_answer(server: TestClient) -> None:
    def ask(steering: Any) -> Any:
        body = {"model": "default", "prompt": "a", "max_tokens": 4, "temperature": 0, "steering": steering}
        return server.post("/v1/completions", json=body)

    def text() -> str:
        return str(ask(None).json()["choices"][0]["text"])

    plain = text()
    for change in (
        {"strength": 1e30},
        {"strength": 3e38},
        {"vector": [3e38] * D_MODEL},
        {"unit": "raw", "strength": 1e38},
    ):
        response = ask({"edits": [{"kind": "add", "layer": 1, "vector": [1.0] * D_MODEL, **change}]})
        assert response.status_code in (200, 400), response.text
        if response.status_code == 400:
            error_of(response, 400)
        assert text() == plain


# --- addresses

_IDS = (
    "..%2f..%2fetc%2fpasswd", "%2e%2e%2f", "....%2f%2f", "..%5c..%5cx", "%252e%252e", "kept%2f..%2fkept", "kept;x", "kept%20",
    "'%20OR%20'1'='1", "1;DROP%20TABLE%20recipes", "%00", "kept%00", "%ff%fe", "%ed%a0%80", "%e2%80%ae", "a" * 3000, "-1", "null",
    "%7b%7b7*7%7d%7d", "*", "%25s", "kept.json", "KEPT",
)  # fmt: skip


@pytest.mark.parametrize(("method", "path", "takes_body"), _WITH_ID)
def test_odd_ids_are_nothing_anywhere(server: TestClient, method: str, path: str, takes_body: bool) -> None:
    for odd in _IDS:
        body = json.dumps({"tags": []}).encode() if takes_body else b""
        headers = {"Content-Type": "application/json"} if takes_body else {}
        response = server.request(method, re.sub("{.*?}", odd, path), content=body, headers=headers)
        assert response.status_code in (400, 404, 405, 414), f"{method} {path} {odd}: {response.status_code}"
        error_of(response, response.status_code)
    assert server.get("/v1/recipes/kept").status_code == 200


def test_sql_in_names_changes_nothing(server: TestClient) -> None:
    attack = "x'; DROP TABLE recipes; --"
    before = server.get("/v1/recipes").json()["total"]
    for response in (
        server.get("/v1/recipes", params={"tag": attack}),
        server.get("/v1/jobs", params={"state": attack}),
        server.post("/v1/recipes", json={"recipe": inline(untrusted_recipe({**_FACTS, "name": attack}))}),
        server.patch("/v1/recipes/kept", json={"tags": [attack]}),
        server.post("/v1/chat/completions", json={"model": attack, "messages": [{"role": "user", "content": "x"}]}),
    ):
        error_of(response, response.status_code)
    assert server.get("/v1/recipes").json()["total"] == before


def test_without_a_key_every_operation_but_the_open_ones_is_closed(tiny: LanguageModel, store: Store) -> None:
    secret = key_for(store)
    is_open = {"health", "ready"}
    with asking(app_over(tiny, store)) as client:
        for operation, method, path, takes_body in _OPERATIONS:
            body = _SOUND[operation] if takes_body else None
            for headers in (
                {},
                bearer("ssm_nobody_" + "x" * 43),
                {"Authorization": "Basic eDp5"},
                bearer(secret[:-1] + "é"),
            ):
                response = client.request(
                    method, re.sub("{.*?}", "1", path), json=body, headers={k: v.encode() for k, v in headers.items()}
                )
                if operation in is_open:
                    assert response.status_code == 200, operation
                else:
                    assert secret not in error_of(response, 401)["message"]
