"""Files are written whole or not at all, whatever ends the writing."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.recipes import few

from steersman.errors import DataError, StorageError
from steersman.files import (
    is_there,
    parse_json,
    read_text,
    replacing,
    sha256_file,
    sole_use,
    storage_errors,
    write_bytes,
)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data[:size]).hexdigest()


@settings(few, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=500))
def test_what_is_written_is_read(tmp_path: Path, data: bytes) -> None:
    write_bytes(tmp_path / "deep" / "er" / "file", data)
    assert (tmp_path / "deep" / "er" / "file").read_bytes() == data
    assert _names(tmp_path / "deep" / "er") == ["file"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_whatever_ends_the_block_the_old_file_stays(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        _replace(path, error)
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_the_old_file_is_whole_while_the_new_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as aside:
        aside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_two_writers_at_once_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"
    assert _names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a device that is always full")
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="disk is full"):
        _replace(path, Path("/dev/full"))
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder"):
        write_bytes(tmp_path / "folder", b"new")
    assert _names(tmp_path) == ["folder"]


def test_a_file_where_a_folder_is_needed_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "further" / "below"):
        with pytest.raises(StorageError):
            write_bytes(path, b"new")


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_path_without_a_file_name_is_a_storage_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError):
        write_bytes(Path(name), b"new")


def test_a_name_too_long_for_the_disk_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_bytes(tmp_path / ("x" * 300), b"new")


def test_a_name_that_just_fits_is_written(tmp_path: Path) -> None:
    write_bytes(tmp_path / ("x" * 250), b"new")
    assert (tmp_path / ("x" * 250)).read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM])
def test_refusals_become_storage_errors_with_the_path(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageError) as refused, storage_errors(tmp_path / "file"):
        raise OSError(number, "refused")
    assert str(tmp_path / "file") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value.__cause__, OSError)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), ValueError("other"), OSError("no number")])
def test_other_errors_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as passed, storage_errors(tmp_path):
        raise error
    assert passed.value is error


def _replace(path: Path, end: BaseException | Path) -> None:
    """Begin to replace a file, and meet an error or a device."""
    with replacing(path) as aside:
        aside.write_bytes(b"half of the n")
        if isinstance(end, BaseException):
            raise end
        aside.unlink()
        aside.symlink_to(end)  # Writing there meets the operating system's own refusal.
        aside.write_bytes(b"new" * 1000)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_people_give_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert read_text(path, "words") == "one\r\ntwo"
    path.write_bytes(b"abc")
    assert read_text(path, "words", most_bytes=3) == "abc"
    with pytest.raises(DataError, match="larger than"):
        read_text(path, "words", most_bytes=2)
    path.write_bytes(b"ab\xff")
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 2\)"):
        read_text(path, "words")
    for wrong in (tmp_path, tmp_path / "none", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="cannot read words from"):
            read_text(wrong, "words")
    assert is_there(path)
    assert not is_there(tmp_path / ("x" * 300))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="line 7: no valid JSON"):
        parse_json(text, "line 7")


def test_half_characters_are_refused_and_whole_ones_read() -> None:
    assert parse_json(r'["\ud83d\ude00"]', "x") == ["\U0001f600"]
    with pytest.raises(DataError, match="half a character"):
        parse_json(r'{"a": ["\ud83d"]}', "x")


def test_a_folder_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with sole_use(folder):
        assert list(folder.iterdir()) == []
        with pytest.raises(StorageError, match="another run works in"), sole_use(folder):
            pytest.fail("two had it")
    assert not folder.exists()  # It was made for nothing.
    with sole_use(folder):
        (folder / "kept").touch()
    assert list(folder.iterdir()) == [folder / "kept"]


def test_a_run_that_is_killed_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    holds = f"""
import time
from pathlib import Path
from steersman.files import sole_use
with sole_use(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match="another run"), sole_use(tmp_path):
            pytest.fail("two had it")
        other.kill()
        other.wait(30)
    with sole_use(tmp_path):
        pass


def test_a_file_is_no_folder_to_work_in(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"), sole_use(tmp_path / "file"):
        pytest.fail("it was taken")
