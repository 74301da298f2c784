"""Carry flows out over HTTP, on a thread or on asyncio. Knows nothing of what is asked, nor why it is tried again."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any, Generic, Self, TypeVar, cast

import anyio
import httpx2

from steersman.client.steps import Again, Call, Failure, Flow, Head, Item, Pause, Read, Send, Step, Streamed
from steersman.client.target import ERRORS, Target

T = TypeVar("T")


class Driver:
    """Carries flows out on the calling thread. Safe to share between threads."""

    def __init__(self, target: Target, transport: httpx2.BaseTransport | None = None) -> None:
        """Open no connection yet.

        Args:
            target: where to ask.
            transport: what carries requests, in place of the network.
        """
        self.target = target
        self._http = httpx2.Client(transport=transport, **target.options())

    def run(self, flow: Flow[T]) -> T:
        """What a flow comes to."""
        with _Exchange(self.target, self._http) as exchange:
            got: Any = None
            while True:
                try:
                    step = flow.send(got)
                except StopIteration as stop:
                    return cast("T", stop.value)
                got = exchange.do(step)

    def stream(self, flow: Streamed[T]) -> Stream[T]:
        """What a flow hands out."""
        return Stream(self._items(flow))

    def _items(self, flow: Streamed[T]) -> Generator[T, None, None]:
        with _Exchange(self.target, self._http) as exchange:
            got: Any = None
            while True:
                try:
                    step = flow.send(got)
                except StopIteration:
                    return
                if isinstance(step, Item):
                    yield step.value
                    got = None
                else:
                    got = exchange.do(step)

    def close(self) -> None:
        """Close what is open."""
        self._http.close()


class AsyncDriver:
    """Carries flows out on asyncio (or trio)."""

    def __init__(self, target: Target, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        """Open no connection yet; arguments as of `Driver`."""
        self.target = target
        self._http = httpx2.AsyncClient(transport=transport, **target.options())

    async def run(self, flow: Flow[T]) -> T:
        """What a flow comes to."""
        async with _AsyncExchange(self.target, self._http) as exchange:
            got: Any = None
            while True:
                try:
                    step = flow.send(got)
                except StopIteration as stop:
                    return cast("T", stop.value)
                got = await exchange.do(step)

    def stream(self, flow: Streamed[T]) -> AsyncStream[T]:
        """What a flow hands out."""
        return AsyncStream(self._items(flow))

    async def _items(self, flow: Streamed[T]) -> AsyncGenerator[T, None]:
        async with _AsyncExchange(self.target, self._http) as exchange:
            got: Any = None
            while True:
                try:
                    step = flow.send(got)
                except StopIteration:
                    return
                if isinstance(step, Item):
                    yield step.value
                    got = None
                else:
                    got = await exchange.do(step)

    async def close(self) -> None:
        """Close what is open."""
        await self._http.aclose()


class Stream(Generic[T]):
    """Items as they come. Leaving it early (`close`, or the end of a `with` block) tells the server to stop."""

    def __init__(self, items: Generator[T, None, None]) -> None:
        """Nothing is asked before the first item is wanted."""
        self._items = items

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the stream."""
        self._items.close()


class AsyncStream(Generic[T]):
    """Items as they come. Leaving it early (`aclose`, or the end of an `async with` block) tells the server to stop."""

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        """Nothing is asked before the first item is wanted."""
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the stream."""
        await self._items.aclose()


class _Exchange:
    """The steps of one flow, at most one response open at a time."""

    def __init__(self, target: Target, http: httpx2.Client) -> None:
        self._target, self._http = target, http
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._until = float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._response is not None:
            self._response.close()

    def do(self, step: Step) -> Any:
        match step:
            case Send(call):
                return self._send(call)
            case Again():
                wait_s = self._target.wait_s(step)
                if wait_s is not None:
                    time.sleep(wait_s)
                return wait_s is not None
            case Pause(seconds):
                return time.sleep(seconds)
            case Read():
                return self._read()

    def _send(self, call: Call[Any]) -> Head | Failure:
        self.__exit__()
        self._until = self._target.until(call)
        request = self._http.build_request(**self._target.request(call, self._http.is_closed))
        try:
            self._response = self._http.send(request, stream=True)
        except ERRORS as error:
            return self._target.failure(error)
        self._chunks = self._response.iter_bytes()
        return self._target.head(self._response)

    def _read(self) -> bytes | Failure | None:
        try:
            return next(self._chunks, None) if time.monotonic() < self._until else self._target.late()
        except ERRORS as error:
            return self._target.failure(error)


class _AsyncExchange:
    """The same with `await`."""

    def __init__(self, target: Target, http: httpx2.AsyncClient) -> None:
        self._target, self._http = target, http
        self._response: httpx2.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._until = float("inf")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            with anyio.CancelScope(shield=True):  # A cancelled task must still let the connection go.
                await self._response.aclose()

    async def do(self, step: Step) -> Any:
        match step:
            case Send(call):
                return await self._send(call)
            case Again():
                wait_s = self._target.wait_s(step)
                if wait_s is not None:
                    await anyio.sleep(wait_s)
                return wait_s is not None
            case Pause(seconds):
                return await anyio.sleep(seconds)
            case Read():
                return await self._read()

    async def _send(self, call: Call[Any]) -> Head | Failure:
        await self.__aexit__()
        self._until = self._target.until(call)
        request = self._http.build_request(**self._target.request(call, self._http.is_closed))
        try:
            self._response = await self._http.send(request, stream=True)
        except ERRORS as error:
            return self._target.failure(error)
        self._chunks = self._response.aiter_bytes()
        return self._target.head(self._response)

    async def _read(self) -> bytes | Failure | None:
        assert self._chunks is not None
        try:
            return await anext(self._chunks, None) if time.monotonic() < self._until else self._target.late()
        except ERRORS as error:
            return self._target.failure(error)
