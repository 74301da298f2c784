"""`Client`: all that a steersman server does, as plain methods. What each of them asks is written once for both clients."""

from __future__ import annotations

from typing import Self

import httpx2

from steersman.client import answers, features, jobs
from steersman.client.features import FeatureMethods
from steersman.client.jobs import JobMethods
from steersman.client.methods import Method, OnThread, StreamMethod
from steersman.client.recipes import RecipeMethods
from steersman.client.sets import SetMethods
from steersman.client.target import RETRIES, TIMEOUT_S, Target
from steersman.client.transport import Driver

BASE_URL = "http://127.0.0.1:8765"
"""Where `steersman serve` listens."""


class AnswerMethods:
    """What both clients do themselves."""

    chat = Method(answers.chat)
    complete = Method(answers.complete)
    stream = StreamMethod(answers.stream)
    models = Method(answers.models)
    traits = Method(features.traits)
    autosteer = Method(jobs.autosteer)
    evaluate = Method(jobs.evaluate)


class Recipes(RecipeMethods, OnThread):
    """Your recipes on the server."""


class Sets(SetMethods, OnThread):
    """Your sets of steering vectors on the server."""


class Jobs(JobMethods, OnThread):
    """Your work in the background of the server."""


class Features(FeatureMethods, OnThread):
    """The features of the server's SAE."""


class Client(AnswerMethods, OnThread):
    """A steersman server, asked from one thread or from many.

        with Client() as client:
            print(client.chat("What is money?", traits={"pirate": 1.0}).text)

    Requests that are refused for now (429, 503) are sent again when the server says; what cannot be repeated without harm
    is never sent twice once it may have been acted on. Errors are `ApiError`.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Open no connection yet.

        Args:
            base_url: the server's address.
            api_key: sent to that address alone; in no error, log or repr.
            timeout_s: longest to wait for the server, and for a whole answer that is not a stream.
            retries: how often a request is tried again.
            transport: what carries requests, in place of the network.

        Raises:
            RequestError: one of these cannot be used.
        """
        super().__init__(Driver(Target(base_url, api_key, timeout_s, retries), transport))
        self.recipes = Recipes(self._driver)
        self.sets = Sets(self._driver)
        self.jobs = Jobs(self._driver)
        self.features = Features(self._driver)

    def __repr__(self) -> str:
        return f"Client({self._driver.target.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._driver.close()
