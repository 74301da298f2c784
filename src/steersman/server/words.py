"""What may be told of an error to somebody who is not at the server. Knows nothing of HTTP."""

from __future__ import annotations

from steersman.errors import ModelError, SteersmanError, StorageError


def told(error: SteersmanError) -> str:
    """Its message in one line; of a disk, a database or a model not even where it is: that is for the log (see `is_private`)."""
    if isinstance(error, StorageError):
        return "the server's disk or database refuses or does not answer; ask again later (the server's log says why)"
    if isinstance(error, ModelError):
        return "a model that the server needs for this cannot be used (the server's log says why)"
    return " ".join(str(error).split()) or type(error).__name__


def is_private(error: Exception) -> bool:
    """Whether its message names places on the server's machine."""
    return isinstance(error, StorageError | ModelError)
