"""`AsyncClient`: the methods of `Client`, awaited; streams and events are iterated with `async for`."""

from __future__ import annotations

from typing import Self

import httpx2

from steersman.client.client import BASE_URL, AnswerMethods
from steersman.client.features import FeatureMethods
from steersman.client.jobs import JobMethods
from steersman.client.methods import OnLoop
from steersman.client.recipes import RecipeMethods
from steersman.client.sets import SetMethods
from steersman.client.target import RETRIES, TIMEOUT_S, Target
from steersman.client.transport import AsyncDriver


class AsyncRecipes(RecipeMethods, OnLoop):
    """Your recipes on the server."""


class AsyncSets(SetMethods, OnLoop):
    """Your sets of steering vectors on the server."""


class AsyncJobs(JobMethods, OnLoop):
    """Your work in the background of the server."""


class AsyncFeatures(FeatureMethods, OnLoop):
    """The features of the server's SAE."""


class AsyncClient(AnswerMethods, OnLoop):
    """A steersman server, asked from one event loop.

        async with AsyncClient() as client:
            print((await client.chat("What is money?", traits={"pirate": 1.0})).text)

    As patient and as careful as `Client`.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Open no connection yet; arguments and errors as of `Client`."""
        super().__init__(AsyncDriver(Target(base_url, api_key, timeout_s, retries), transport))
        self.recipes = AsyncRecipes(self._driver)
        self.sets = AsyncSets(self._driver)
        self.jobs = AsyncJobs(self._driver)
        self.features = AsyncFeatures(self._driver)

    def __repr__(self) -> str:
        return f"AsyncClient({self._driver.target.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._driver.close()
