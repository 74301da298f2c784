"""Fetching from the hub: the hub itself is played by a stub; where it is not reached, the error says what to do."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from steersman.errors import SaeError, StorageError
from steersman.sae.importers.fetch import fetch
from steersman.settings import Settings

_FILES = ("README.md", "cfg.json", "layers.1/cfg.json", "layers.1/sae.safetensors", "layers.10/cfg.json", "l[1]/x.npz")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gives the files that are asked for, by the hub's own rules for patterns; remembers which."""
    given: list[str] = []

    def snapshot_download(
        _repo: str, *, allow_patterns: list[str], ignore_patterns: list[str] | None, local_files_only: bool
    ) -> str:
        assert local_files_only is False
        for name in _FILES:
            wanted = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(name, pattern) for pattern in ignore_patterns or []):
                given.append(name)
                (tmp_path / "snapshot" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "snapshot" / name).touch()
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return given


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers.1", ["layers.1/cfg.json", "layers.1/sae.safetensors"]),
        ("/layers.1/", ["layers.1/cfg.json", "layers.1/sae.safetensors"]),
        ("layers.10/cfg.json", ["layers.10/cfg.json"]),
        ("l[1]", ["l[1]/x.npz"]),
        (None, ["cfg.json"]),
    ],
)
def test_what_is_asked_for_comes_and_nothing_else(
    path: str | None, expected: list[str], hub: list[str], settings: Settings
) -> None:
    found = fetch("owner/name", path, settings)
    assert hub == expected
    assert found.exists()
    assert found.name == ("snapshot" if path is None else Path(path).name)


def test_a_path_that_is_not_there_is_said(hub: list[str], settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    with pytest.raises(SaeError, match=r"no layers\.99 in owner/name"):
        fetch("owner/name", "layers.99", settings)


def failing(error: Exception) -> Callable[..., str]:
    def snapshot_download(*_args: Any, **_kwargs: Any) -> str:
        raise error

    return snapshot_download


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "no repo 'owner/name'"),
        (GatedRepoError.__new__(GatedRepoError), "accept its terms"),
        (ConnectionError("no route\nto host"), "cannot fetch owner/name: no route"),
        (LocalEntryNotFoundError("nothing here"), "is the hub reachable"),
    ],
)
def test_why_nothing_came_is_said_in_one_line(
    error: Exception, said: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
    with pytest.raises(SaeError, match=said) as refused:
        fetch("owner/name", "layers.1", settings)
    assert "\n" not in str(refused.value)


def test_a_full_disk_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="disk is full"):
        fetch("owner/name", None, settings)


def test_offline_only_the_cache_is_asked(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="offline mode is on"):
        fetch("steersman-tests/there-is-no-such-repo", "layers.1", Settings(cache=tmp_path, offline=True))
