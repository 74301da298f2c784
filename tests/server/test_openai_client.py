"""The official `openai` client, sync and async, against a real server on a free port."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI
from tests.engine.rig import broken_block, dictate, make_engine, push
from tests.server.rig import Served, app_over, key_for, serving, settings_in

from steersman.engine.request import Request, Result, Sampling
from steersman.models.language_model import LanguageModel, chat
from steersman.server.pump import Pump
from steersman.server.recipe_wire import inline
from steersman.steering.recipe import Recipe
from steersman.store.store import Store

MESSAGES: Any = [{"role": "user", "content": "hello"}]
LONG_TOKENS = 440
PATIENCE_S = 30.0


@pytest.fixture
def app(tiny: LanguageModel, store: Store) -> FastAPI:
    """An open app whose answers may be long."""
    return app_over(tiny, store, max_tokens=512)


@pytest.fixture
def ai(served: Served) -> Iterator[OpenAI]:
    """A client of the server."""
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def ask(ai: OpenAI, **fields: Any) -> Any:
    return ai.chat.completions.create(
        **{"model": "default", "messages": MESSAGES, "max_tokens": 8, "temperature": 0, **fields}
    )


def said(tiny: LanguageModel, recipe: Recipe | None = None, tokens: int = 8) -> Result:
    request = Request(prompt=chat("hello"), recipe=recipe, sampling=Sampling(max_tokens=tokens))
    return make_engine(tiny).generate([request])[0]


def pump_of(app: FastAPI) -> Pump:
    pump: Pump = app.state.context.pump
    return pump


def is_soon(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def slow_down(pump: Pump, seconds: float = 0.01) -> None:
    """Make every step take a while, so that a test can act while an answer is written."""
    original = pump.engine.step

    def step() -> None:
        time.sleep(seconds)
        original()

    pump.engine.step = step  # type: ignore[method-assign]


# --- what it is made for


def test_a_chat_is_answered(ai: OpenAI, tiny: LanguageModel) -> None:
    made = ask(ai)
    assert made.choices[0].message.content == said(tiny).text
    assert made.choices[0].message.role == "assistant"
    assert made.choices[0].finish_reason == "length"
    assert made.usage.completion_tokens == 8
    assert made.steersman["finish_reason"] == "length"
    # What the library makes of an answer can be sent back.
    again: Any = [*MESSAGES, made.choices[0].message, {"role": "user", "content": "and now?"}]
    dumped: Any = [*MESSAGES, made.choices[0].message.model_dump(), {"role": "user", "content": "and now?"}]
    assert ask(ai, messages=again).choices[0].message.content == ask(ai, messages=dumped).choices[0].message.content


def test_a_chat_is_streamed(ai: OpenAI, tiny: LanguageModel) -> None:
    chunks = list(ask(ai, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == said(tiny).text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[-2].steersman["strength"] == 1.0


def test_the_librarys_own_way_to_stream_works(ai: OpenAI, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    dictate(monkeypatch, tiny, "It is so.")
    with ai.chat.completions.stream(model="default", messages=MESSAGES, max_tokens=20) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == "It is so."
    assert final.choices[0].finish_reason == "stop"


def test_a_text_is_continued(ai: OpenAI, tiny: LanguageModel) -> None:
    expected = make_engine(tiny).generate([Request(prompt="once", sampling=Sampling(max_tokens=16))])[0].text
    made = ai.completions.create(model="default", prompt="once", temperature=0, logprobs=2)
    assert made.choices[0].text == expected
    assert made.choices[0].logprobs is not None
    assert len(made.choices[0].logprobs.tokens or ()) == 16
    pieces = ai.completions.create(model="default", prompt="once", temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == expected


def test_logprobs_and_choices_come_as_the_library_knows_them(ai: OpenAI) -> None:
    made = ask(ai, logprobs=True, top_logprobs=2, n=3, temperature=1.0, seed=4)
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    for choice in made.choices:
        for token in choice.logprobs.content:
            assert token.logprob <= token.top_logprobs[0].logprob <= 0
    assert ask(ai, n=3, temperature=1.0, seed=4).choices[1].message == made.choices[1].message


def test_steering_goes_in_the_extra_body(ai: OpenAI, store: Store, tiny: LanguageModel) -> None:
    recipe = push(2, 1.0)
    store.recipes.add("local", recipe)
    expected = said(tiny, recipe).text
    edits = inline(recipe)["edits"]
    assert expected != said(tiny).text
    assert ask(ai, model="tiny-llama:push2").choices[0].message.content == expected
    for steering in ({"recipe": "push2"}, {"recipes": {"push2": 1.0}}, {"edits": edits}):
        made = ask(ai, extra_body={"steering": steering, "compare": True})
        assert made.choices[0].message.content == expected
        assert made.plain["choices"][0]["message"]["content"] == said(tiny).text
    names = [model.id for model in ai.models.list()]
    assert "tiny-llama:push2" in names
    assert ai.models.retrieve("tiny-llama:push2").id == "tiny-llama:push2"


def test_what_is_wrong_is_raised_as_what_the_library_knows(ai: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(ai, extra_body={"steering": {"strenght": 1.0}})
    assert wrong.value.param == "steering.strenght"
    assert wrong.value.request_id
    with pytest.raises(openai.BadRequestError) as long:
        ask(ai, messages=[{"role": "user", "content": "x" * 600}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        ask(ai, model="gpt-4o")
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt-4o")


def test_an_error_within_a_stream_is_raised(ai: OpenAI, tiny: LanguageModel) -> None:
    with broken_block(tiny, RuntimeError("secret"), after=5), pytest.raises(openai.APIError) as broken:
        list(ask(ai, stream=True))
    assert "internal error" in broken.value.message
    assert "secret" not in str(broken.value.body)
    assert ask(ai).choices[0].message.content == said(tiny).text


def test_keys_are_asked_for_and_reach_their_owners_recipes_alone(tiny: LanguageModel, store: Store) -> None:
    mine, reader = key_for(store, "generate", "read"), key_for(store, "read")
    store.recipes.add("ada", push(1))
    store.recipes.add("eve", push(2))
    with serving(app_over(tiny, store), settings_in(store.folder)) as served:
        clients = [OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) for key in (mine, reader, "none")]
        ada, only_reads, nobody = clients
        assert [model.id for model in ada.models.list()][:2] == ["tiny-llama", "tiny-llama:push1"]
        assert ask(ada, model="tiny-llama:push1").choices
        with pytest.raises(openai.NotFoundError):
            ask(ada, model="tiny-llama:push2")
        with pytest.raises(openai.PermissionDeniedError):
            ask(only_reads)
        with pytest.raises(openai.AuthenticationError):
            ask(nobody)
        for client in clients:
            client.close()


# --- many at once


@asynccontextmanager
async def asynchronous(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def test_sixteen_streams_at_once_are_what_each_would_be_alone(
    served: Served, store: Store, tiny: LanguageModel
) -> None:
    recipes = [push(index, 0.8, 1 + index % 2) for index in range(16)]
    for recipe in recipes:
        store.recipes.add("local", recipe)
    expected = [said(tiny, recipe, 12 + index).text for index, recipe in enumerate(recipes)]

    async def work() -> list[str]:
        async with asynchronous(served) as ai:

            async def one(index: int) -> str:
                fields: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12 + index, "temperature": 0}
                model = f"default:push{index}"
                stream = await ai.chat.completions.create(model=model, stream=True, **fields)
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

            return await asyncio.gather(*map(one, range(16)))

    assert asyncio.run(work()) == expected


def test_more_than_fit_are_told_to_come_back(tiny: LanguageModel, store: Store) -> None:
    app = app_over(tiny, store, max_queue=4, max_tokens=512)
    with serving(app, settings_in(store.folder)) as served:

        async def work() -> list[Any]:
            async with asynchronous(served) as ai:
                asked = [
                    ai.chat.completions.create(model="default", messages=MESSAGES, max_tokens=60, temperature=0)
                    for _ in range(40)
                ]
                return await asyncio.gather(*asked, return_exceptions=True)

        slow_down(pump_of(app))
        found = asyncio.run(work())
        answers = [item for item in found if not isinstance(item, BaseException)]
        refused = [item for item in found if isinstance(item, openai.APIStatusError)]
        assert len(answers) == 20
        assert len(answers) + len(refused) == 40
        assert all(item.status_code == 503 and int(item.response.headers["retry-after"]) >= 1 for item in refused)
        assert len({item.choices[0].message.content for item in answers}) == 1


# --- leaving, and the end


def test_closing_a_stream_frees_its_row(ai: OpenAI, app: FastAPI) -> None:
    pump = pump_of(app)
    slow_down(pump, 0.05)
    stream = ask(ai, stream=True, max_tokens=LONG_TOKENS)
    next(stream)
    assert pump.running == 1
    began = time.monotonic()
    stream.close()
    assert is_soon(lambda: pump.running == 0)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("stream", [True, False])
def test_a_connection_that_breaks_frees_its_rows(served: Served, app: FastAPI, stream: bool) -> None:
    pump = pump_of(app)
    slow_down(pump)
    body = {"model": "default", "messages": MESSAGES, "max_tokens": LONG_TOKENS, "n": 3, "stream": stream}
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
        if stream:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
        assert is_soon(lambda: pump.running == 3)
    assert is_soon(lambda: pump.running == 0)


def test_a_server_that_ends_finishes_its_streams(tiny: LanguageModel, store: Store) -> None:
    app = app_over(tiny, store, max_tokens=512, grace_s=30.0)
    with serving(app, settings_in(store.folder, grace_s=30.0)) as served:
        slow_down(pump_of(app), 0.005)
        with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as ai:
            stream = ask(ai, stream=True, max_tokens=120)
            pieces = [next(stream)]
            served.end()
            pieces += stream
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == said(tiny, tokens=120).text
    assert pieces[-1].choices[0].finish_reason == "length"


def test_a_stream_that_outlives_the_grace_is_told(tiny: LanguageModel, store: Store) -> None:
    app = app_over(tiny, store, max_tokens=512, grace_s=0.2)
    threads = threading.active_count()
    with serving(app, settings_in(store.folder, grace_s=0.2)) as served:
        slow_down(pump_of(app), 0.05)
        with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as ai:
            stream = ask(ai, stream=True, max_tokens=LONG_TOKENS)
            next(stream)
            served.end()
            with pytest.raises((openai.APIError, openai.APIConnectionError)):
                list(stream)
    assert is_soon(lambda: threading.active_count() <= threads)
