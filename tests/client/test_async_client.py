"""The asynchronous client: what is the same as the plain one, and what only it can do."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from tests.client.test_client import made_recipe
from tests.server.rig import Served

from steersman.client.async_client import AsyncClient
from steersman.client.client import Client
from steersman.errors import ApiError
from steersman.models.language_model import LanguageModel

_CHAT = {"max_tokens": 12, "temperature": 0.0}


def _public(holder: object) -> set[str]:
    return {name for name in dir(holder) if not name.startswith("_")}


def test_both_clients_have_the_same_methods_and_words() -> None:
    plain, loop = Client(), AsyncClient()
    assert _public(plain) == _public(loop)
    for part in ("recipes", "sets", "jobs", "features"):
        ours, theirs = getattr(plain, part), getattr(loop, part)
        assert _public(ours) == _public(theirs)
        for name in _public(ours):
            assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(theirs, name))
            assert getattr(ours, name).__doc__


def test_many_at_once_each_with_its_own_steering(server: Served, tiny: LanguageModel) -> None:
    async def asked() -> None:
        async with AsyncClient(server.url) as client:
            for number in range(4):
                await client.recipes.upload(made_recipe(tiny, f"r{number}", seed=number))
            alone = [(await client.chat("Hello", recipe=f"r{n}", **_CHAT)).text for n in range(4)]
            together = await asyncio.gather(*(client.chat("Hello", recipe=f"r{n % 4}", **_CHAT) for n in range(12)))
            assert [answer.text for answer in together] == alone * 3
            assert len(set(alone)) > 1

    asyncio.run(asked())


def test_streams_on_a_loop(server: Served) -> None:
    async def asked() -> None:
        async with AsyncClient(server.url) as client:
            whole = await client.chat("Hello", **_CHAT)
            pieces = [piece async for piece in client.stream("Hello", **_CHAT)]
            assert "".join(piece.text for piece in pieces) == whole.text
            async with client.stream("Hello", max_tokens=60) as stream:
                async for _ in stream:
                    break
            assert (await client.chat("Hello", **_CHAT)).text == whole.text
            with pytest.raises(ApiError, match="nobody"):
                await anext(client.stream("Hello", recipe="nobody"))

    asyncio.run(asked())


def test_a_cancelled_question_is_cancelled_on_the_server(server: Served) -> None:
    async def asked() -> None:
        async with AsyncClient(server.url) as client:
            pump = server.app.state.context.pump
            task = asyncio.create_task(client.chat("Hello", max_tokens=64, n=8))
            async with asyncio.timeout(30):
                while not pump.running:
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(30):
                while pump.running or pump.waiting:
                    await asyncio.sleep(0.05)

    asyncio.run(asked())
