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
    └── StorageError            the disk refused (full, read-only, gone)

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
    """The disk refused: full, read-only or gone."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'strength'?"` when a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
