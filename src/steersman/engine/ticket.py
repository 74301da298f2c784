"""What is held of a request that was handed in. Knows nothing of batches: who drives the engine is told by a function."""

from __future__ import annotations

from collections.abc import Callable

from steersman.engine.request import Chunk, Result
from steersman.engine.sequence import RunningSequence


class Ticket:
    """A request that was handed in."""

    def __init__(self, sequence: RunningSequence, drive: Callable[[Callable[[], bool]], None]) -> None:
        """Args: the sequence that answers the request; what runs the engine until a condition holds."""
        self.sequence = sequence
        self._drive = drive

    @property
    def is_done(self) -> bool:
        """Whether `result` returns at once."""
        return self.sequence.is_done

    @property
    def has_news(self) -> bool:
        """Whether there is something to `take`, if only the end."""
        return self.sequence.is_done or self.sequence.has_news

    def take(self) -> Chunk:
        """Text since the last call, if any, and the result once it is done; does not wait. Raises as `result` does."""
        if self.sequence.error is not None:
            raise self.sequence.error
        return self.sequence.take()

    def result(self) -> Result:
        """Wait for the answer, driving the engine if nobody else does.

        Raises:
            SteersmanError: generation failed.
        """
        self._drive(lambda: self.sequence.is_done)
        if self.sequence.error is not None:
            raise self.sequence.error
        return self.sequence.result()

    def cancel(self) -> None:
        """End the request where it stands; does nothing when it is done."""
        self.sequence.cancel()
