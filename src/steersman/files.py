"""Write files whole or not at all, and hash them. Knows nothing of what is in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from steersman.errors import StorageError

_CHUNK_BYTES = 1 << 20
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
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                aside.touch()
            except FileNotFoundError as error:  # A file system without real folders, such as /proc.
                raise PermissionError(errno.EACCES, "Permission denied", str(path)) from error
            yield aside
            aside.replace(path)
    finally:
        with contextlib.suppress(OSError):  # Whatever made writing fail is already on its way up.
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all.

    Raises:
        StorageError: the disk refused.
    """
    with replacing(path) as aside:
        aside.write_bytes(data)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into `StorageError`; every other error passes unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise StorageError(f"cannot write {path}: {_REFUSALS[error.errno]}") from error
