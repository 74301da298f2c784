"""OpenAI's protocol in process: the same answer streamed, whole and from the engine; steering; what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.rig import ALWAYS, broken_block, dictate, make_engine, push, vector
from tests.server.rig import app_over, asking, error_of, settings_in
from tests.tiny import D_MODEL

from steersman.engine.guard import Guard
from steersman.engine.request import Request, Result, Sampling
from steersman.models.language_model import LanguageModel, chat
from steersman.server.app import create_app
from steersman.server.openai_answers import ChatCompletion, TextCompletion
from steersman.server.openai_bodies import ChatBody, CompletionBody
from steersman.server.recipe_wire import inline
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.store.store import Store

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


def body_of(path: str = CHAT, **fields: Any) -> dict[str, Any]:
    """A body that asks for a short greedy answer."""
    said = {"messages": MESSAGES} if path == CHAT else {"prompt": "hello"}
    return {"model": "default", "max_tokens": 8, "temperature": 0, **said, **fields}


def whole(client: TestClient, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    response = client.post(path, json=body_of(path, **fields))
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    (ChatCompletion if path == CHAT else TextCompletion).model_validate(made, strict=True)
    return made


def events(client: TestClient, path: str = CHAT, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, after checking that it ends as it should."""
    response = client.post(path, json=body_of(path, stream=True, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    assert all(line.startswith("data: {") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(choice: dict[str, Any]) -> str:
    """The text in a choice of an answer, or of a chunk."""
    part = choice.get("message", choice.get("delta", choice))
    return str(part.get("content", part.get("text", "")) or "")


def gathered(chunks: list[dict[str, Any]], place: Callable[[dict[str, Any]], Any]) -> dict[int, dict[str, Any]]:
    """What a stream says of each choice, put together: text, why it ended, log-probabilities."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in place(chunk):
            held = found.setdefault(choice["index"], {"text": "", "finish_reason": None, "logprobs": None})
            assert held["finish_reason"] is None, "something comes after the end"
            held["text"] += text_of(choice)
            held["finish_reason"] = choice["finish_reason"]
            for name, values in (choice["logprobs"] or {}).items():
                held["logprobs"] = held["logprobs"] or {}
                held["logprobs"][name] = (held["logprobs"].get(name) or []) + values if values is not None else None
    return found


def engine_says(model: LanguageModel, recipe: Recipe | None = None, tokens: int = 8, **sampling: Any) -> Result:
    request = Request(prompt=chat("hello"), recipe=recipe, sampling=Sampling(max_tokens=tokens, **sampling))
    return make_engine(model).generate([request])[0]


def edits_of(recipe: Recipe) -> list[dict[str, Any]]:
    edits: list[dict[str, Any]] = inline(recipe)["edits"]
    return edits


# --- one answer, three ways


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3, "temperature": 1.0, "seed": 5},
        {"logprobs": 2, "n": 2, "temperature": 1.5, "seed": 1},
        {"compare": True, "steering": {"edits": edits_of(push())}},
        {"stop": ["a", "b", "\ufffd"], "temperature": 2.0, "seed": 3, "max_tokens": 40},
    ],
    ids=["plain", "several", "logprobs", "compare", "stop"],
)
def test_a_stream_says_what_a_whole_answer_says(client: TestClient, path: str, fields: dict[str, Any]) -> None:
    if path == CHAT and "logprobs" in fields:
        fields = {**fields, "logprobs": True, "top_logprobs": 2}
    made = whole(client, path, **fields)
    chunks = events(client, path, stream_options={"include_usage": True}, **fields)
    assert all(chunk["model"] == "default" and chunk["id"] == chunks[0]["id"] for chunk in chunks)

    def expected(choices: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        return {
            choice["index"]: {
                "text": text_of(choice),
                "finish_reason": choice["finish_reason"],
                "logprobs": choice["logprobs"],
            }
            for choice in choices
        }

    assert gathered(chunks, lambda chunk: chunk["choices"]) == expected(made["choices"])
    assert [chunk["usage"] for chunk in chunks] == [None] * (len(chunks) - 1) + [made["usage"]]
    assert chunks[-1]["choices"] == []
    plain = gathered(chunks, lambda chunk: chunk.get("plain", {}).get("choices", ()))
    assert plain == (expected(made["plain"]["choices"]) if "plain" in made else {})
    if "plain" in made:
        assert chunks[-1]["plain"]["usage"] == made["plain"]["usage"]


def test_the_answer_is_the_engines_own(client: TestClient, tiny: LanguageModel) -> None:
    for recipe in (None, push(1), push(2, -1.5)):
        body = {} if recipe is None else {"steering": {"edits": edits_of(recipe)}}
        made, result = whole(client, **body), engine_says(tiny, recipe)
        assert text_of(made["choices"][0]) == result.text
        assert made["usage"] == {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": len(result.token_ids),
            "total_tokens": result.prompt_tokens + len(result.token_ids),
        }


def test_sixteen_recipes_at_once_are_never_mixed(tiny: LanguageModel, store: Store) -> None:
    recipes = [push(index, 0.8, 1 + index % 2) for index in range(16)]
    for recipe in recipes:
        store.recipes.add("local", recipe)
    expected = [engine_says(tiny, recipe, 20).text for recipe in recipes]
    app = create_app(settings_in(store.folder), engine=make_engine(tiny), store=store)

    async def all_at_once() -> list[str]:
        import httpx2

        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1") as client:

            async def one(index: int) -> str:
                body = body_of(model=f"tiny-llama:push{index}", max_tokens=20, stream=bool(index % 2))
                response = await client.post(CHAT, json=body)
                if not index % 2:
                    return text_of(response.json()["choices"][0])
                lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: {")]
                return gathered([json.loads(line) for line in lines], lambda chunk: chunk["choices"])[0]["text"]

            return await asyncio.gather(*map(one, range(16)))

    with asking(app) as client:
        assert client.portal is not None
        assert client.portal.call(all_at_once) == expected


# --- the form of a stream


def test_a_chat_streams_role_then_text_then_the_reason(client: TestClient) -> None:
    chunks = events(client)
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in chunks[1:-1])
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all("usage" not in chunk for chunk in chunks)
    assert ["steersman" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_characters_are_never_split(
    client: TestClient, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    text = 'aü€𝄞\u2028"\\ \n\x7fé'
    dictate(monkeypatch, tiny, text)  # A token is a byte here.
    chunks = events(client, path, max_tokens=64)
    pieces = [text_of(choice) for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_stop_string_ends_the_answer_and_no_piece_of_it_is_shown(
    client: TestClient, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    dictate(monkeypatch, tiny, "one, EN, END of it")
    chunks = events(client, path, max_tokens=64, stop="END")
    assert gathered(chunks, lambda chunk: chunk["choices"])[0]["text"] == "one, EN, "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


# --- why it ended


@pytest.mark.parametrize("stream", [False, True])
def test_guard_and_abort_are_stop_with_the_reason_beside_it(client: TestClient, stream: bool) -> None:
    def end(**fields: Any) -> dict[str, Any]:
        made = events(client, **fields)[-1] if stream else whole(client, **fields)
        assert made["choices"][0]["finish_reason"] == "stop"
        told: dict[str, Any] = made["steersman"]
        return told

    abort = {"kind": "above", "layer": 1, "threshold": -1e9}
    abort["target"] = {"kind": "direction", "vector": [1.0] * D_MODEL}
    assert end(steering={"abort": abort})["finish_reason"] == "abort"
    stopped = end(max_tokens=64, steering={"edits": edits_of(push()), "guard": "stop"})
    assert stopped["finish_reason"] == "guard"
    assert stopped["guard_events"][0]["at_token"] <= 64


def test_a_softened_answer_says_how_strong_it_was_at_the_end(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steersman.server.openai_bodies.Guard", lambda mode: Guard(mode=mode, min_logprob=ALWAYS))
    told = whole(client, max_tokens=64, steering={"edits": edits_of(push()), "guard": "soften"})["steersman"]
    assert told["strength"] < 1.0
    assert [event["strength"] for event in told["guard_events"]][-1] == told["strength"]
    assert all(event["rewound_to"] is not None for event in told["guard_events"])


# --- choices, seeds, log-probabilities


def test_a_seed_repeats_and_every_choice_has_its_own(client: TestClient) -> None:
    fields = {"n": 4, "temperature": 1.5, "max_tokens": 12}
    first, again = (whole(client, seed=7, **fields) for _ in range(2))
    assert first["choices"] == again["choices"]
    assert [choice["steersman"]["seed"] for choice in first["choices"]] == [7, 8, 9, 10]
    assert len({text_of(choice) for choice in first["choices"]}) > 1
    third = whole(client, seed=9, temperature=1.5, max_tokens=12)["choices"][0]
    assert text_of(third) == text_of(first["choices"][2])
    drawn = whole(client, **fields)["choices"]
    told = drawn[1]["steersman"]["seed"]
    assert text_of(whole(client, seed=told, temperature=1.5, max_tokens=12)["choices"][0]) == text_of(drawn[1])
    assert whole(client, seed=-1)["steersman"]["seed"] == 2**63 - 1


def test_several_texts_are_continued_in_order(client: TestClient) -> None:
    made = whole(client, TEXT, prompt=["one", "two"], n=2)
    singles = [whole(client, TEXT, prompt=text) for text in ("one", "two")]
    assert [text_of(choice) for choice in made["choices"]] == [
        text_of(single["choices"][0]) for single in singles for _ in range(2)
    ]
    assert made["usage"]["prompt_tokens"] == sum(single["usage"]["prompt_tokens"] for single in singles)
    assert made["usage"]["completion_tokens"] == 4 * 8


def test_a_chats_logprobs_spell_the_answer(
    client: TestClient, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictate(monkeypatch, tiny, "hü€")
    [choice] = whole(client, logprobs=True, top_logprobs=3)["choices"]
    content = choice["logprobs"]["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == text_of(choice) == "hü€"
    assert [token["token"] for token in content][:2] == ["h", "bytes:\\xc3"]
    for token in content:
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0] == {name: token[name] for name in ("token", "logprob", "bytes")}
        assert token["logprob"] <= 0.0


def test_a_completions_logprobs_stand_where_their_text_stands(
    client: TestClient, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictate(monkeypatch, tiny, "so it is")
    [choice] = whole(client, TEXT, logprobs=2)["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"] == "so it is"
    assert [choice["text"][at] for at in told["text_offset"]] == told["tokens"]
    assert all(token in top for token, top in zip(told["tokens"], told["top_logprobs"], strict=True))
    assert whole(client, TEXT, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] == [{}] * 8


def test_log_probabilities_are_the_engines(client: TestClient, tiny: LanguageModel) -> None:
    request = Request(prompt=chat("hello"), sampling=Sampling(max_tokens=8), logprobs=0)
    expected = make_engine(tiny).generate([request])[0].logprobs
    [choice] = whole(client, logprobs=True)["choices"]
    found = [token["logprob"] for token in choice["logprobs"]["content"]]
    assert found == pytest.approx([item.logprob for item in expected], abs=1e-4)


# --- steering


def test_every_way_to_steer_gives_the_same_answer(client: TestClient, store: Store, tiny: LanguageModel) -> None:
    recipe_id = store.recipes.add("local", push(3, 1.0)).id
    expected = engine_says(tiny, push(3, 1.0)).text
    assert expected != engine_says(tiny).text
    for fields in (
        {"model": "tiny-llama:push3"},
        {"model": f"default:{recipe_id}"},
        {"steering": {"recipe": "push3"}},
        {"steering": {"recipes": {recipe_id: 1}}},
        {"steering": {"edits": edits_of(push(3, 1.0))}},
        {"steering": {"edits": edits_of(push(3, 2.0)), "strength": 0.5}},
    ):
        made = whole(client, **fields)
        assert text_of(made["choices"][0]) == expected
        assert made["model"] == fields.get("model", "default")
    assert made["steersman"]["steering"] == {"edits": 1, "strength": 0.5}


def test_a_default_steers_everybody_who_does_not_replace_it(tiny: LanguageModel, store: Store, tmp_path: Any) -> None:
    from steersman.steering.recipe_file import save_recipe

    save_recipe(push(3, 1.0), tmp_path / "house.json")
    other = push(4, 1.0)
    with asking(app_over(tiny, store, steering=tmp_path / "house.json")) as client:
        assert text_of(whole(client)["choices"][0]) == engine_says(tiny, push(3, 1.0)).text
        added = whole(client, steering={"edits": edits_of(other)})
        assert text_of(added["choices"][0]) == engine_says(tiny, push(3, 1.0) + other).text
        replaced = whole(client, steering={"edits": edits_of(other), "mode": "replace"})
        assert text_of(replaced["choices"][0]) == engine_says(tiny, other).text
        assert text_of(whole(client, steering={"mode": "replace"})["choices"][0]) == engine_says(tiny).text
        compared = whole(client, compare=True)
        assert text_of(compared["plain"]["choices"][0]) == engine_says(tiny).text


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.5}])
def test_compare_gives_the_plain_answer_beside_the_steered_one(client: TestClient, fields: dict[str, Any]) -> None:
    made = whole(client, n=2, compare=True, steering={"edits": edits_of(push())}, **fields)
    seeds = [choice["steersman"]["seed"] for choice in made["choices"]]
    assert [choice["steersman"]["seed"] for choice in made["plain"]["choices"]] == seeds
    for seed, steered, plain in zip(seeds, made["choices"], made["plain"]["choices"], strict=True):
        alone = whole(client, seed=seed, **fields)["choices"][0]
        assert text_of(plain) == text_of(alone)
        assert text_of(steered) != text_of(plain)


def test_a_body_of_the_steering_api_is_answered_in_its_form(
    client: TestClient, store: Store, tiny: LanguageModel
) -> None:
    made = store.sets.create(
        "local", "mine", model="m", method="lat", dimensions={"kind": {}}, prompts=None, request={}
    )
    job = store.jobs.claim("w", 60.0)
    assert job is not None
    store.jobs.finish(job.id, "w", {}, vectors={"kind": Recipe(name="kind", edits=push(5, 1.0).edits)})
    body = {"model": made.id, "prompt": "hello", "control_settings": {"kind": 1.0}, "settings": {"max_new_tokens": 8}}
    answer = client.post(TEXT, json=body).json()
    assert (answer["model_id"], answer["object"]) == (made.id, "text_completion")
    # The same set through OpenAI's door.
    steering = {"traits": {"kind": 1.0}}
    ours = whole(client, model=made.id, steering=steering, repetition_penalty=1.1)
    assert text_of(ours["choices"][0]).strip() == answer["content"]
    assert made.id in [item["id"] for item in client.get("/v1/models").json()["data"]]


def test_models_are_listed_and_found(client: TestClient, store: Store) -> None:
    store.recipes.add("local", push(1))
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [item["id"] for item in listed["data"]][:2] == ["tiny-llama", "tiny-llama:push1"]
    for item in listed["data"]:
        assert client.get(f"/v1/models/{item['id']}").json() == item
    assert "did you mean" in error_of(client.get("/v1/models/tiny-llama:push"), 404)["message"]


# --- refused


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ({"steering": {"recpe": "x"}}, "steering.recpe", "did you mean 'recipe'"),
        ({"messages": [{"role": "user", "contnt": "x"}]}, "messages[0]", "did you mean 'content'"),
        ({"steering": {"edits": [{"kind": "add", "layer": 1, "vectr": [1.0] * 32}]}}, "steering.edits", "'vector'"),
        ({"steering": {"traits": {"calm": 1e6}}}, "steering.traits.calm", "10"),
        ({"steering": {"strength": -10.5}}, "steering.strength", "-10"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "text"),
        ({"temperature": 2.5}, "temperature", "2"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"n": 17}, "n", "16"),
        ({"n": True}, "n", "integer"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens", "max_tokens"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "repetition_penalty"),
        ({"presence_penalty": -1}, "presence_penalty", "repetition_penalty"),
        ({"stop": ["x"] * 17}, "stop", "16"),
        ({"stop": ["x" * 300]}, "stop", "256"),
        ({"tools": []}, "tools", "unknown field"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unknown field"),
        ({"seed": 2**63}, "seed", ""),
        ({"model": ""}, "model", "at least 1"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(
    client: TestClient, fields: dict[str, Any], param: str, told: str
) -> None:
    error = error_of(client.post(CHAT, json=body_of(**fields)), 400)
    assert error["param"].startswith(param)
    assert told in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"settings": {"max_new_tokens": 3}}, "max_tokens"),
    ],
)
def test_a_wrong_field_of_a_completion_is_refused_by_its_name(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    assert error_of(client.post(TEXT, json=body_of(TEXT, **fields)), 400)["param"].startswith(param)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_numbers_that_are_none_are_refused(client: TestClient, number: str) -> None:
    for field in ('"temperature": %s', '"steering": {"strength": %s}', '"steering": {"traits": {"calm": %s}}'):
        text = json.dumps(body_of())[:-1] + "," + field % number + "}"
        response = client.post(CHAT, content=text, headers={"Content-Type": "application/json"})
        error_of(response, 400)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_is_too_long_has_openais_code(client: TestClient, path: str) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 600}]} if path == CHAT else {"prompt": "x" * 600}
    for fields, param in ((long, next(iter(long))), ({"max_tokens": 65}, "max_tokens")):
        for stream in (False, True):
            error = error_of(client.post(path, json=body_of(path, stream=stream, **fields)), 400)
            assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_an_answer_ends_where_the_context_does(client: TestClient) -> None:
    made = whole(client, TEXT, prompt="x" * 500, max_tokens=64)
    assert made["usage"]["total_tokens"] == 512
    assert made["choices"][0]["finish_reason"] == "length"


def test_what_is_not_there_is_404(client: TestClient) -> None:
    for fields in ({"model": "gpt-4o"}, {"model": "tiny-llama:nobody"}, {"steering": {"recipe": "nobody"}}):
        error_of(client.post(CHAT, json=body_of(**fields)), 404)


def test_a_recipe_of_another_model_is_409(client: TestClient, store: Store) -> None:
    store.recipes.add("local", Recipe(name="wide", edits=(Add(layer=1, vector=vector(0, 64)),)))
    error = error_of(client.post(CHAT, json=body_of(model="default:wide")), 409)
    assert "64" in error["message"]
    deep = Recipe(name="deep", edits=(Add(layer=99, vector=vector(0)),))
    error_of(client.post(CHAT, json=body_of(steering={"edits": edits_of(deep)}, stream=True)), 409)


_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = [*ChatBody.model_fields, *CompletionBody.model_fields, "settings"]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(path=st.sampled_from([CHAT, TEXT]), fields=st.dictionaries(st.sampled_from(_FIELDS), _json, max_size=3))
def test_no_body_breaks_the_server(client: TestClient, path: str, fields: dict[str, Any]) -> None:
    response = client.post(path, json={**body_of(path), **fields})
    assert response.status_code in (200, 400, 404, 409)
    if response.status_code != 200:
        error_of(response, response.status_code)


# --- trouble


@contextlib.contextmanager
def broken_later(tiny: LanguageModel, after: int) -> Iterator[None]:
    with broken_block(tiny, RuntimeError("secret detail"), after=after):
        yield


def test_a_broken_step_is_an_error_without_detail(client: TestClient, tiny: LanguageModel) -> None:
    with broken_later(tiny, 0):
        error = error_of(client.post(CHAT, json=body_of()), 500)
    assert "secret" not in json.dumps(error)
    with broken_later(tiny, 0):
        error_of(client.post(CHAT, json=body_of(stream=True)), 500)
    assert text_of(whole(client)["choices"][0]) == engine_says(tiny).text


def test_an_error_within_a_stream_is_its_last_event(client: TestClient, tiny: LanguageModel) -> None:
    with broken_later(tiny, 4):
        response = client.post(CHAT, json=body_of(stream=True))
    assert response.status_code == 200
    *before, last, rest = response.text.split("\n\n")
    assert rest == ""
    assert before
    assert "[DONE]" not in response.text
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["request_id"]) == ("internal_error", response.headers["x-request-id"])
    assert "secret" not in response.text


def test_a_steering_that_breaks_the_model_is_the_callers_mistake(client: TestClient) -> None:
    edit = {"kind": "scale", "layer": 1, "factor": 1e308, "target": {"kind": "direction", "vector": [1.0] * D_MODEL}}
    error = error_of(client.post(CHAT, json=body_of(steering={"edits": [edit]})), 400)
    assert "lower the strength" in error["message"]


def test_a_full_queue_is_503_with_retry_after(tiny: LanguageModel, store: Store) -> None:
    app = app_over(tiny, store, max_queue=16)
    with asking(app) as client:
        pump = app.state.context.pump
        pump._live = [None]  # Somebody's; with these 32 there is one too many for 16 slots and 16 that may wait.
        response = client.post(CHAT, json=body_of(n=16, compare=True))
        pump._live = []
        error = error_of(response, 503)
        assert int(response.headers["retry-after"]) >= 1
        assert error["code"] == "busy"
        assert len(whole(client, n=16)["choices"]) == 16


def test_what_takes_too_long_is_504_and_runs_no_further(app: FastAPI, tiny: LanguageModel, store: Store) -> None:
    engine = make_engine(tiny)
    original = engine.step

    def slow() -> None:
        time.sleep(0.02)
        original()

    engine.step = slow  # type: ignore[method-assign]
    app = create_app(settings_in(store.folder, request_timeout_s=0.3), engine=engine, store=store)
    with asking(app) as client:
        error_of(client.post(CHAT, json=body_of(max_tokens=64)), 504)
        pump = app.state.context.pump
        until = time.monotonic() + 5
        while pump.running and time.monotonic() < until:
            time.sleep(0.01)
        assert pump.running == 0
        # A stream has begun by then, and may go on.
        assert events(client, max_tokens=64)[-1]["choices"][0]["finish_reason"] in ("length", "stop")


def test_tokens_are_counted(client: TestClient, app: FastAPI) -> None:
    metrics = app.state.context.metrics
    made = whole(client, n=2)
    streamed = events(client, stream_options={"include_usage": True})[-1]
    text = metrics.text().decode()
    written = made["usage"]["completion_tokens"] + streamed["usage"]["completion_tokens"]
    assert f"steersman_written_tokens_total {float(written)}" in text
    assert "steersman_first_token_seconds_count 1.0" in text
