"""A client's method from the function that makes its flow: one line gives a plain method to one client, a coroutine to the other.

Knows nothing of paths or of what is asked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar, overload

from steersman.client.steps import Flow, Streamed
from steersman.client.transport import AsyncDriver, AsyncStream, Driver, Stream

P = ParamSpec("P")
T = TypeVar("T")


class OnThread:
    """Has its flows carried out on the calling thread."""

    def __init__(self, driver: Driver) -> None:
        """Share a client's connections."""
        self._driver = driver


class OnLoop:
    """Has its flows carried out on the event loop."""

    def __init__(self, driver: AsyncDriver) -> None:
        """Share a client's connections."""
        self._driver = driver


class Method(Generic[P, T]):
    """`get = Method(get_recipe)`: in a class on a thread it returns what the flow comes to, on a loop it is awaited."""

    def __init__(self, make: Callable[P, Flow[T]]) -> None:
        """Keep the function that makes the flow."""
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, holder: None, owner: type) -> Method[P, T]: ...
    @overload
    def __get__(self, holder: OnThread, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, holder: OnLoop, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, holder: OnThread | OnLoop | None, owner: type) -> Any:
        """The method of one client."""
        if holder is None:
            return self
        run: Callable[[Flow[T]], Any] = holder._driver.run
        return functools.wraps(self._make)(lambda *args, **kwargs: run(self._make(*args, **kwargs)))


class StreamMethod(Generic[P, T]):
    """The same for what comes in pieces: a `Stream` on a thread, an `AsyncStream` on a loop (not awaited, but iterated)."""

    def __init__(self, make: Callable[P, Streamed[T]]) -> None:
        """Keep the function that makes the flow."""
        self._make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, holder: None, owner: type) -> StreamMethod[P, T]: ...
    @overload
    def __get__(self, holder: OnThread, owner: type) -> Callable[P, Stream[T]]: ...
    @overload
    def __get__(self, holder: OnLoop, owner: type) -> Callable[P, AsyncStream[T]]: ...
    def __get__(self, holder: OnThread | OnLoop | None, owner: type) -> Any:
        """The method of one client."""
        if holder is None:
            return self
        stream: Callable[[Streamed[T]], Any] = holder._driver.stream
        return functools.wraps(self._make)(lambda *args, **kwargs: stream(self._make(*args, **kwargs)))
