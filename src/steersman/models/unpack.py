"""Keep a model as a plain folder in the cache, written once, whole or not at all. Knows nothing of where it comes from."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steersman.files import storage_errors

_MARKER = "steersman.json"


def unpack(folder: Path, read: Callable[[], tuple[Any, Any]]) -> None:
    """Write the transformers model and tokenizer that `read` returns to `folder`, unless they are there already.

    Processes may race for the same folder: the first to finish wins, and its copy is left alone.

    Raises:
        StorageError: the disk refused.
    """
    if _is_whole(folder):
        return
    hf, tokenizer = read()
    if _is_whole(folder):
        return  # Another process was faster, and may be reading its copy this moment.
    with storage_errors(folder), _disk_full(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as aside:
            target = Path(aside) / "model"
            hf.save_pretrained(target)
            tokenizer.save_pretrained(target)
            sizes = {path.name: path.stat().st_size for path in target.iterdir()}
            (target / _MARKER).write_text(json.dumps({"bytes": sizes}))
            shutil.rmtree(folder, ignore_errors=True)
            try:
                target.rename(folder)
            except OSError:
                if not _is_whole(folder):
                    raise


def _is_whole(folder: Path) -> bool:
    """Whether every file that was written is still there at its full size."""
    try:
        sizes = json.loads((folder / _MARKER).read_text())["bytes"]
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def _disk_full(folder: Path) -> Iterator[None]:
    """safetensors reports a full disk as an error type of its own; make it the OSError that it is."""
    try:
        yield
    except Exception as error:
        if "os error 28" in str(error) or "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        raise
