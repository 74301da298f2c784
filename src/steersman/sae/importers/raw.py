"""Open foreign files without running anything that is in them, and take tensors out of them by name."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steersman.errors import SaeError


def read_state(path: Path) -> dict[str, Any]:
    """The state dict in a PyTorch file: tensors and plain values, mapped from disk where the file allows it.

    Raises:
        SaeError: no such file, damaged, or anything in it but tensors and plain values (which would have to be executed).
    """
    if not path.is_file():
        raise SaeError(f"cannot read {path}: there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SaeError(f"{path} is damaged or holds more than tensors, and is not opened ({first})") from error
    if not isinstance(state, dict):
        raise SaeError(f"{path} holds a {type(state).__name__}, not the state dict of an SAE")
    return state


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays in an `.npz` file, as tensors.

    Raises:
        SaeError: no such file, damaged, or pickled objects in it.
    """
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise SaeError(f"{path} is damaged, or no .npz file; fetch it again")
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            return {name: torch.from_numpy(np.asarray(arrays[name], dtype=np.float32)) for name in arrays.files}
    except OSError as error:
        raise SaeError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SaeError(
            f"{path} is damaged or holds more than arrays of numbers, and is not opened ({error})"
        ) from error


def pick(state: Mapping[str, Any], *names: str) -> tuple[Tensor, ...]:
    """The named tensors, in that order.

    Raises:
        SaeError: one is missing, or is not a tensor of numbers.
    """
    for name in names:
        if name not in state:
            raise SaeError(f"there is no tensor {name!r} in it; is the format right?")
        if not isinstance(state[name], Tensor) or not state[name].is_floating_point():
            raise SaeError(f"{name!r} is not a tensor of floating point numbers")
    return tuple(state[name] for name in names)


def width(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a matrix.

    Raises:
        SaeError: it is not a matrix.
    """
    if tensor.ndim != 2:
        raise SaeError(f"a matrix was expected, not a tensor of shape {tuple(tensor.shape)}")
    return tensor.shape[0], tensor.shape[1]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before an `SaeError` that does not say it already."""
    try:
        yield
    except SaeError as error:
        raise error if str(path) in str(error) else SaeError(f"{path}: {error}") from error
