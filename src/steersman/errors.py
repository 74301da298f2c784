"""Every error that steersman raises on purpose, as one tree.

    SteersmanError
    ├── ModelError              a model cannot be found, read or steered
    │   ├── AssetError          a bundled file is missing, corrupt or cannot be fetched
    │   └── UnsupportedModel    the architecture has no decoder blocks that we can find
    ├── RecipeError             a recipe, edit, schedule or condition is wrong in itself
    │   └── RecipeMismatch      a recipe is right, but made for another model
    ├── SaeError                a sparse autoencoder cannot be read, or does not do what is asked of it
    ├── RequestError            a generation request is wrong (prompt, settings, length)
    ├── EndpointError           a language model behind an HTTP address cannot be asked, or answers nonsense
    ├── DataError               a file of texts, pairs or tensors cannot be used
    ├── StorageError            the disk or the database refused (full, read-only, gone)
    ├── NotFound                what was asked for by name or id is not there, or belongs to somebody else
    ├── Conflict                it cannot be done as things stand (a name that is taken, work that is not done yet)
    ├── AccessRefused           the caller may not: no key, a wrong or expired one, or one without the scope
    ├── Busy                    too much at once; the same request may well succeed later
    └── ApiError                what a steersman server answered to our client

A message says what is wrong, where, and the next step, in one line. The CLI prints it and exits with 1; nothing else
catches `SteersmanError` wholesale.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SteersmanError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one line for a person."""


class ModelError(SteersmanError):
    """A model cannot be found, read or steered."""


class AssetError(ModelError):
    """A bundled file is missing, corrupt or cannot be fetched."""


class UnsupportedModel(ModelError):
    """The architecture has no decoder blocks that we can find, or a cache that we cannot hold."""


class RecipeError(SteersmanError, ValueError):
    """A recipe, edit, schedule or condition is wrong in itself.

    A `ValueError` too: so pydantic, which calls the checks while it reads JSON, adds the place to the message.
    """


class RecipeMismatch(RecipeError):
    """A recipe is well formed, but was made for another model."""


class SaeError(SteersmanError):
    """A sparse autoencoder cannot be read, belongs to another model or layer, or does not do what is asked of it."""


class RequestError(SteersmanError):
    """A generation request is wrong: its prompt, its settings or its length."""


class EndpointError(SteersmanError):
    """A language model behind an HTTP address is not set up, out of reach, refuses, or answers in another form than asked."""


class DataError(SteersmanError):
    """A file of texts, pairs or tensors cannot be used."""


class StorageError(SteersmanError):
    """The disk or the database refused: full, read-only or gone."""


class NotFound(SteersmanError):
    """What was asked for by name or id is not there, or belongs to somebody else."""


class Conflict(SteersmanError):
    """It cannot be done as things stand: a name is taken, work is not done yet, or has ended."""


class AccessRefused(SteersmanError):
    """The caller may not: no key, a wrong, expired or revoked one, or one without the scope."""

    def __init__(self, message: str, *, is_known: bool = False) -> None:
        """Say why, and whether the key itself is good and only its scope is not."""
        super().__init__(message)
        self.is_known = is_known


class Busy(SteersmanError):
    """Too much at once; the same request may well succeed later."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0, is_callers: bool = False) -> None:
        """Say why, when to come back, and whether it is the caller's own doing (a rate limit) or everybody's."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_callers = is_callers


class ApiError(SteersmanError):
    """What a steersman server answered to our client instead of a result."""

    def __init__(self, message: str, *, status: int, kind: str, request_id: str | None = None) -> None:
        """Keep the HTTP status, the server's word for the error and the request's id, for its log."""
        super().__init__(message)
        self.status, self.kind, self.request_id = status, kind, request_id


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'strength'?"` when a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
