"""Server-sent events from bytes that arrive in any pieces. Knows nothing of HTTP or of what the events mean.

The format is that of the HTML standard, section 9.2.6 "interpreting an event stream": lines end with LF, CR or CR LF, a
blank line ends an event, `data` lines add up, lines with a colon in front are comments, and an event without its blank line is
dropped.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MOST_BYTES = 16 << 20
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class ServerEvent(NamedTuple):
    """One event."""

    kind: str
    """`message` where it has none."""
    data: str
    id: str | None
    """The last id that was sent, with this event or before."""


class EventParser:
    """Holds what has come of an event so far."""

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self._rest = bytearray()
        self._searched = 0
        self._is_first, self._after_cr = True, False
        self._kind, self._data_bytes = "", 0
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that a piece completes.

        Raises:
            ValueError: a single event is larger than 16 MiB, so this is no event stream.
        """
        if not chunk:
            return []
        if self._after_cr:  # The other half of a CR LF.
            chunk, self._after_cr = chunk.removeprefix(b"\n"), False
        self._rest += chunk
        if self._is_first:
            if len(self._rest) < len(_BOM) and _BOM.startswith(self._rest):
                return []
            self._is_first = False
            if self._rest.startswith(_BOM):
                del self._rest[: len(_BOM)]
        found, begin = [], 0
        for end in _LINE_END.finditer(self._rest, self._searched):
            event = self._line(bytes(self._rest[begin : end.start()]))
            found += [event] if event else []
            begin = end.end()
        self._after_cr = begin == len(self._rest) and self._rest.endswith(b"\r")
        del self._rest[:begin]
        self._searched = len(self._rest)
        if len(self._rest) + self._data_bytes > _MOST_BYTES:
            raise ValueError(f"an event of more than {_MOST_BYTES >> 20} MiB")
        return found

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._event()
        name, _, rest = line.partition(b":")
        value = rest.removeprefix(b" ").decode(errors="replace")
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(rest)
        elif name == b"event":
            self._kind = value
        elif name == b"id" and "\0" not in value:
            self._id = value
        return None  # A comment (no name), a retry time, or a field that we do not know.

    def _event(self) -> ServerEvent | None:
        """What a blank line ends; nothing where there is no data."""
        kind, data = self._kind or "message", self._data
        self._kind, self._data, self._data_bytes = "", [], 0
        return ServerEvent(kind, "\n".join(data), self._id) if data else None
