"""Write files whole or not at all, read those that people wrote, and hash them. Knows nothing of what is in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steersman.errors import DataError, StorageError

_CHUNK_BYTES = 1 << 20
_MOST_BYTES = 64 << 20
_REFUSALS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EFBIG: "the file would exceed the size limit set for this process; raise it (ulimit -f) or choose another disk",
    errno.EIO: "the disk reported an input/output error; check it, or choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EISDIR: "that is a folder, not a file",
}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_text(path: Path, what: str, *, most_bytes: int = _MOST_BYTES) -> str:
    """The text of a file that a person gave; line ends stay as they are.

    Args:
        path: the file.
        what: what it should hold, for the message: `prompts`.
        most_bytes: the largest file that is read.

    Raises:
        DataError: unreadable, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise DataError(f"cannot read {what} from {path}: {error.strerror}") from error
    if len(data) > most_bytes:
        raise DataError(f"{path} is larger than {most_bytes >> 20} MB; give it in parts, or a sample of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def parse_json(text: str, where: str, hint: str = "write one object a line") -> Any:
    """The JSON value that a text is.

    Args:
        text: what a person wrote.
        where: file and line, for the message.
        hint: what to write instead.

    Raises:
        DataError: no valid JSON, or half a character in it, which no tokenizer takes.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a character (a lone surrogate); write it whole") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no valid JSON ({error}); {hint}") from error
    return value


def is_there(path: Path) -> bool:
    """Whether a path exists; False too for a text that is too long to be a path."""
    try:
        return path.exists()
    except OSError:
        return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block succeeds and removed when it does not.

    Readers see the old file or the new one, never half of one, and an interrupt leaves nothing behind.

    Raises:
        StorageError: the folder cannot be made or written (full, read-only, not a folder).
    """
    with storage_errors(path):  # Before the work is done, not after.
        if not path.name or path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    # Cut: a name that fits must still fit with what is added, in bytes.
    aside = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        with storage_errors(path):
            make_folder(path.parent, for_file=path)
            aside.touch()
            yield aside
            aside.replace(path)
    finally:
        with contextlib.suppress(OSError):  # Whatever made writing fail is already on its way up.
            aside.unlink(missing_ok=True)


def make_folder(path: Path, *, for_file: Path | None = None) -> None:
    """Make a folder, with those above it, where it is not there.

    Args:
        path: the folder.
        for_file: what will be written into it; an error names that instead.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(for_file or path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # A file system without real folders, such as /proc.
            raise PermissionError(errno.EACCES, "Permission denied", str(path)) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all.

    Raises:
        StorageError: the disk refused.
    """
    with replacing(path) as aside:
        aside.write_bytes(data)


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keep a folder, made where it is not there, to oneself, so that two runs that go on where one ended do not mix.

    The lock is on the folder itself and ends with the process, however it ends. Systems without such locks (Windows) have none.
    A folder that was made for it and stayed empty is removed again.

    Raises:
        StorageError: another run has it, or it cannot be made.
    """
    is_new = not is_there(folder)
    make_folder(folder)
    try:
        with _locked(folder):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # It is not empty.
                folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if os.name == "nt":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"another run works in {folder}; wait for its end, or name another folder") from error
        except OSError:  # A file system without locks: as before there were any.
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into `StorageError`; every other error passes unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise StorageError(f"cannot write {path}: {_REFUSALS[error.errno]}") from error
