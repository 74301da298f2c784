"""Tensors as files named by the SHA-256 of their bytes: `tensors/<database>/ab/<sha256>.safetensors`. Knows nothing of SQL.

A file is on the disk before a row refers to it, and is swept away only when no row does. The same bytes are kept once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Set as AbstractSet
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from steersman.errors import StorageError
from steersman.files import replacing, sha256_file, storage_errors

_ENDING = ".safetensors"
_UNFINISHED_S = 3_600.0


class Blobs:
    """The tensor files of one database."""

    def __init__(self, folder: Path) -> None:
        """Keep them below `folder`, which is made with the first."""
        self._folder = folder

    def path(self, sha256: str) -> Path:
        """Where the file of this hash is, or would be."""
        return self._folder / sha256[:2] / f"{sha256}{_ENDING}"

    def put(self, data: bytes) -> str:
        """Write bytes that are not there yet, or no longer as they were, and give their hash. On disk when this returns.

        Raises:
            StorageError: the disk refused.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if not path.is_file() or sha256_file(path) != sha256:
            with replacing(path) as aside, aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _sync_folder(path.parent)
        return sha256

    def read(self, sha256: str) -> dict[str, Tensor]:
        """The tensors of a file, on the CPU.

        Raises:
            StorageError: it is missing, unreadable or has other content.
        """
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(
                f"the tensor file {path.name[:12]}… cannot be read ({error.strerror}); restore the store's folder"
            ) from error
        try:
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError("other content than its name says")
            tensors: dict[str, Tensor] = load_tensors(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise StorageError(
                f"the tensor file {path.name[:12]}… is damaged ({error}); restore the store's folder"
            ) from error
        return tensors

    def sweep(self, kept: AbstractSet[str]) -> int:
        """Remove the files that are not in `kept`, and what an interrupted write left an hour ago; how many were removed.

        Raises:
            StorageError: the disk refused.
        """
        removed = 0
        now = time.time()
        with storage_errors(self._folder):
            for path in sorted(self._folder.glob("*/*")):
                unfinished = path.name.startswith(".") and path.suffix == ".part"
                if unfinished:
                    with contextlib.suppress(FileNotFoundError):  # Renamed meanwhile.
                        if now - path.stat().st_mtime > _UNFINISHED_S:
                            path.unlink()
                elif path.suffix == _ENDING and path.stem not in kept:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, where the system can: Windows opens no folders."""
    if os.name == "posix":
        with storage_errors(folder):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
