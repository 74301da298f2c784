"""What an evaluation has done so far, on disk: answers, grades and fitted recipes, found again by the hash of what made them.

    FOLDER/answers.jsonl    a line an answer          FOLDER/fits/HASH.json    fitted recipes
    FOLDER/grades.jsonl     a line a grade            FOLDER/notes.jsonl       examples, battles
    FOLDER/run.json         the question that the folder's results answer

Interrupted at any moment, the next run goes on from here; a line that was cut off is done again. Knows nothing of what is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from steersman.errors import Conflict, DataError, RecipeError
from steersman.files import storage_errors, write_bytes
from steersman.steering.edits import Edit
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe
from steersman.version import __version__

RUN_FILE = "run.json"
_EDITS: TypeAdapter[tuple[Edit, ...]] = TypeAdapter(tuple[Edit, ...])


def content_hash(value: JsonValue) -> str:
    """Hex hash of a JSON value; the same for equal values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:40]


def cache_key(value: JsonValue) -> str:
    """Key of something that was worked out, by what made it; another version of steersman works it out anew."""
    return content_hash([__version__, value])


def recipe_hash(recipe: Recipe | None) -> str:
    """Hash of what a recipe does: its edits with their vectors. Its name, data and evidence change nothing."""
    if recipe is None:
        return "none"
    abort = None if recipe.abort is None else repr(recipe.abort)
    return content_hash([_EDITS.dump_python(recipe.edits, mode="json"), abort])


def check_folder(folder: Path, question: Mapping[str, JsonValue], results: Collection[str]) -> None:
    """Refuse a folder whose results answer another question than this one, or belong to something else.

    Without results a folder is free, whatever was asked there: what it kept is found by its content.

    Args:
        folder: which may not be there yet.
        question: what decides the results, by name; as `claim` wrote it down.
        results: names of the files that would be replaced.

    Raises:
        Conflict: with the first difference, and what to do.
        DataError: it is no folder, or cannot be read.
    """
    try:
        there = sorted({path.name for path in folder.iterdir()} & set(results))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot use {folder} as a folder: {error.strerror}; choose another one") from error
    if not there:
        return
    next_step = "choose another folder, or replace them with --force"
    try:
        before = json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise Conflict(f"{folder} holds results that are not of this run ({', '.join(there)}); {next_step}")
    for name, value in question.items():
        if before.get(name) != value:
            was, now = (json.dumps(each, ensure_ascii=False) for each in (before.get(name), value))
            raise Conflict(f"{folder} holds results of another run ({name}: {was} there, {now} here); {next_step}")


def claim(folder: Path, question: Mapping[str, JsonValue]) -> None:
    """Write down which question the results of a folder answer.

    Raises:
        StorageError: the disk refused.
    """
    write_bytes(folder / RUN_FILE, (json.dumps(question, indent=2) + "\n").encode())


class Ledger:
    """JSON values by key in one file that only grows; a line goes out to the file as it is put."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            DataError: the file cannot be read.
        """
        self.path = path
        self._known: dict[str, JsonValue] = {}
        self._cut_off = False
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; choose another folder") from error
        self._cut_off = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            try:
                key, value = json.loads(line)
                self._known[str(key)] = value
            except (ValueError, TypeError):
                continue  # Cut off by whatever ended the program in the middle of it, or empty.

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> JsonValue:
        """What was put under a key; None where nothing was."""
        return self._known.get(key)

    def put(self, values: Mapping[str, JsonValue]) -> None:
        """Keep values; they are on disk when this returns.

        Raises:
            StorageError: the disk refused.
        """
        if not values:
            return
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                lines = "".join(json.dumps([key, value]) + "\n" for key, value in values.items())
                file.write(b"\n" * self._cut_off + lines.encode())
                file.flush()
                os.fsync(file.fileno())
        self._cut_off = False
        self._known.update(values)


class RunFolder:
    """The ledgers of one folder."""

    def __init__(self, folder: Path) -> None:
        """Open them; the folder is made, so that a disk that refuses does so before the work.

        Raises:
            DataError: a ledger that cannot be read.
            StorageError: the disk refused.
        """
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.answers, self.grades, self.notes = (
            Ledger(folder / f"{name}.jsonl") for name in ("answers", "grades", "notes")
        )

    def recipe(self, key: str) -> Recipe | None:
        """A recipe that was fitted before; None where there is none, or a damaged one: it is fitted again then."""
        try:
            return load_recipe(self._place(key))
        except RecipeError:
            return None

    def keep_recipe(self, key: str, recipe: Recipe) -> None:
        """Keep a fitted recipe.

        Raises:
            StorageError: the disk refused.
        """
        save_recipe(recipe, self._place(key))

    def _place(self, key: str) -> Path:
        return self.folder / "fits" / f"{key}.json"
