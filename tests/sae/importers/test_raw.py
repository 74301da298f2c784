"""Foreign files are opened without running what is in them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steersman.errors import SaeError
from steersman.sae.importers.gated import as_jumprelu
from steersman.sae.importers.raw import naming, pick, read_npz, read_state, width


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def check(error: pytest.ExceptionInfo[SaeError], path: Path) -> None:
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "ae.pt", tmp_path / "mark"
    torch.save({"W_enc": torch.zeros(2), "trap": Trap(mark)}, path)
    with pytest.raises(SaeError, match="not opened") as error:
        read_state(path)
    check(error, path)
    path = tmp_path / "params.npz"
    np.savez(path, W_enc=np.array([Trap(mark)], dtype=object))
    with pytest.raises(SaeError, match="not opened") as error:
        read_npz(path)
    check(error, path)
    assert not mark.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_tensors_and_plain_values_are_read(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "ae.pt"
    torch.save({"a": torch.arange(3.0), "k": 4, "name": "x"}, path, _use_new_zipfile_serialization=not legacy)
    state = read_state(path)
    assert torch.equal(state["a"], torch.arange(3.0))
    assert (state["k"], state["name"]) == (4, "x")


def test_damaged_and_strange_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ae.pt"
    torch.save({"a": torch.arange(3000.0)}, path)
    whole = path.read_bytes()
    for part in (b"", b"nonsense", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(part)
        with pytest.raises(SaeError) as error:
            read_state(path)
        check(error, path)
    torch.save([1, 2], path)
    with pytest.raises(SaeError, match="holds a list"):
        read_state(path)
    with pytest.raises(SaeError, match="no such file"):
        read_state(tmp_path)
    npz = tmp_path / "params.npz"
    for part in (b"", b"nonsense", b"PK\x03\x04 cut"):
        npz.write_bytes(part)
        with pytest.raises(SaeError) as error:
            read_npz(npz)
        check(error, npz)
    with zipfile.ZipFile(npz, "w") as archive:
        archive.writestr("W_enc.npy", b"no array")
    with pytest.raises(SaeError, match="not opened"):
        pick(read_npz(npz), "W_enc")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(SaeError):
        read_npz(tmp_path / "single.npy")
    with pytest.raises(SaeError, match="cannot read"):
        read_npz(tmp_path / "none.npz")


def test_tensors_are_picked_by_name() -> None:
    state = {"a": torch.zeros(2), "b": torch.ones(3, 4), "ids": torch.arange(3), "k": 5}
    one, other = pick(state, "b", "a")
    assert (one.shape, other.shape) == ((3, 4), (2,))
    for name in ("ids", "k", "missing"):
        with pytest.raises(SaeError, match=name):
            pick(state, "a", name)
    assert width(one) == (3, 4)
    with pytest.raises(SaeError, match="matrix"):
        width(other)


def test_an_error_says_the_file_once() -> None:
    path = Path("some") / "file.pt"
    for text in ("wrong", f"{path} is wrong"):
        with pytest.raises(SaeError) as error, naming(path):
            raise SaeError(text)
        assert str(error.value).count(str(path)) == 1


def test_a_gate_is_a_threshold() -> None:
    made = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 30, generator=made), torch.randn(200, 6, generator=made)
    r, gate, mag = (torch.randn(30, generator=made) for _ in range(3))
    z = x @ weight
    expected = torch.where(z + gate > 0, (r.exp() * z + mag).relu(), 0.0)
    jump = as_jumprelu(weight, r, gate, mag)
    v = x @ jump.W_enc + jump.b_enc
    assert torch.allclose(torch.where(v > jump.threshold.clamp(min=0), v, 0.0), expected, atol=1e-5)
