"""What a flow says to its driver, and what it hears back: frozen data. Knows nothing of how a request is carried out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A request, and how to read its answer."""

    method: str
    path: str
    """Below the base address; what users name is quoted in it."""
    read: Callable[[Any], T]
    """From the parsed JSON, or from the bytes where `is_raw`; may raise ValueError."""
    query: Mapping[str, str | int] | None = None
    body: Mapping[str, Any] | None = None
    """Sent as JSON."""
    is_harmless: bool = False
    """Whether asking twice does no more than asking once."""
    is_raw: bool = False
    """Whether the answer is a file."""
    is_stream: bool = False
    """Whether the answer is a stream of events."""
    last_event_id: str | None = None
    """Where a stream goes on."""


class Send(NamedTuple):
    """Step: send a request. Comes back: `Head` or `Failure`."""

    call: Call[Any]


class Read(NamedTuple):
    """Step: more of the body. Comes back: bytes, None at its end, or `Failure`."""


class Again(NamedTuple):
    """Step: wait before another attempt. Comes back: whether there is to be one."""

    attempt: int
    """How many there have been, from 1."""
    wait_s: float | None
    """What the server asks for; None: as one sees fit."""
    is_patient: bool = False
    """Whether a server that was there is waited for until it has started again."""


class Pause(NamedTuple):
    """Step: wait, because that is how it is done. Comes back: nothing."""

    seconds: float


class Item(NamedTuple, Generic[T]):
    """Step: hand out one item of a stream."""

    value: T


class Head(NamedTuple):
    """What an answer begins with."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    clean: Callable[[str], str]
    """Takes the client's key out of a text, before any of it is quoted."""


class Failure(NamedTuple):
    """Why there is no answer, or no more of it."""

    kind: str
    """`unreachable`: nothing was sent; `timeout`; `broken`: it may have been sent; `too_large`."""
    why: str


Step: TypeAlias = Send | Read | Again | Pause | Item[Any]
Flow: TypeAlias = Generator[Step, Any, T]
Streamed: TypeAlias = Generator[Send | Read | Again | Pause | Item[T], Any, None]
