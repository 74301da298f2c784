"""Turn tokens into text as they come: whole characters only, and never past a stop string."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

_REPLACEMENT = "�"
_CONTEXT_TOKENS = 4


class TextStream:
    """The text of an answer while it grows.

    Tokens are decoded behind the last few of the prompt, so that a leading space survives where the tokenizer drops it at the
    beginning of a text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._ids = list(prompt_ids[-_CONTEXT_TOKENS:])
        self._known = decode(self._ids)
        self.text = ""
        """Everything decoded so far, cut at a stop string."""
        self._emitted = 0
        self.is_stopped = False
        """Whether a stop string was met."""

    def push(self, token_ids: Sequence[int], *, last: bool = False) -> None:
        """Add tokens; with `last`, an unfinished character at the end is shown as it is."""
        if self.is_stopped:
            return
        self._ids.extend(token_ids)
        text = self._decode(self._ids)
        if text.endswith(_REPLACEMENT) and not last:
            return  # The bytes of one character are spread over tokens; wait for the rest.
        self.text += text[len(self._known) :]
        # Keep a short context only: decoding the whole answer at every token would cost ever more.
        self._ids = self._ids[-_CONTEXT_TOKENS:]
        self._known = self._decode(self._ids)
        self._cut()

    def would_stop(self, token_ids: Sequence[int]) -> bool:
        """Whether a stop string is met once these tokens follow; they are not added."""
        ahead = copy.copy(self)
        ahead._ids = list(self._ids)
        ahead.push(token_ids)
        return ahead.is_stopped

    def take(self, *, last: bool = False) -> str:
        """Text not taken before, without an end that may yet turn out to begin a stop string."""
        end = len(self.text) if last or self.is_stopped else len(self.text) - self._held()
        piece, self._emitted = self.text[self._emitted : end], max(end, self._emitted)
        return piece

    def _cut(self) -> None:
        found = [place for place in (self.text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.is_stopped = True

    def _held(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        lengths = [size for stop in self._stop for size in range(1, len(stop)) if self.text.endswith(stop[:size])]
        return max(lengths, default=0)
