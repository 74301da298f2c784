"""What the stages of a run came to, kept in a folder, so that a run that was interrupted goes on where it stopped.

Knows nothing of the stages. A stage's file counts only for the same question: another behaviour, model, SAE or setting has
another key, and its results are made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from steersman.files import storage_errors, write_bytes

T = TypeVar("T")


class Kept:
    """Results of stages by name; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None, asked: object) -> None:
        """Open a folder for one question.

        Args:
            folder: made when the first result comes.
            asked: all that the results depend on; anything that `key_of` takes.
        """
        self.folder, self.key = folder, key_of(asked)

    def stage(self, name: str, kind: Any, make: Callable[[], T]) -> T:
        """The kept result of a stage, or a new one, which is then kept.

        Args:
            name: of the stage.
            kind: type of its result, as pydantic reads and writes it.
            make: does the work.

        Raises:
            StorageError: the folder cannot be written.
        """
        if self.folder is None:
            return make()
        path, adapter = self.folder / f"{name}.json", TypeAdapter(kind)
        try:
            found = json.loads(path.read_bytes())
            if found["key"] == self.key:
                value: T = adapter.validate_python(found["value"], strict=False)
                return value
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            pass  # Not there, or not ours: the work is done again.
        made = make()
        with storage_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        data = {"key": self.key, "value": adapter.dump_python(made, mode="json")}
        write_bytes(path, json.dumps(data).encode())
        return made


def key_of(asked: object) -> str:
    """Hex SHA-256 of a question: of the names and settings of dataclasses, and of plain values. What stands for a service is
    left to its class's name."""
    return hashlib.sha256(json.dumps(_plain(asked), sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **own}
    return type(value).__name__
