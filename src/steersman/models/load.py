"""Turn a name into a `LanguageModel`: `default`, a hub id, a local folder or a `.gguf` file.

A small GGUF file is unpacked once into the cache, in the number format asked for; after that it loads in a fraction of
a second instead of ten. Knows nothing of what is done with the model.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ssl
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steersman.errors import ModelError, UnsupportedModel, did_you_mean
from steersman.files import sha256_file
from steersman.models.assets import ASSETS, Asset
from steersman.models.fetch import Progress, fetch
from steersman.models.language_model import LanguageModel, weights_hash
from steersman.models.unpack import unpack
from steersman.settings import Settings, settle_sums

DEFAULT = "default"
_UNPACK_LIMIT_BYTES = 1 << 30
_HUB_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files are."""

    name: str
    """What the user asked for."""
    folder: str
    """A local folder, or a hub id."""
    gguf: str | None = None
    """File name inside the folder, when the weights are GGUF."""
    sha256: str | None = None
    """Of the GGUF file, where it is known already."""


def load_model(
    name: str = DEFAULT,
    *,
    device: str | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a causal language model, ready to be read and steered.

    Args:
        name: `default` (the bundled model), a hub id, a local folder, or the path of a `.gguf` file.
        device: a torch device; by default the settings', else CUDA where there is one, else the CPU.
        dtype: `bfloat16`, `float16` or `float32`; by default the settings', else bfloat16 where the device computes in it.
        settings: by default read from the environment.
        progress: called with (bytes done, bytes in all) while the bundled model is fetched the first time.

    Raises:
        ModelError: the model cannot be found or read; `AssetError` for the bundled one, `UnsupportedModel` for an
            architecture without decoder blocks.
        StorageError: the cache cannot be written.
    """
    settle_sums()
    settings = settings or Settings.from_env()
    place = choose_device(device or settings.device)
    number_format = choose_dtype(dtype or settings.dtype, place)
    source = resolve(name, settings, progress)
    if source.gguf is not None:
        # float16 is rounded from the float32 copy, which the fingerprint is taken of.
        source = _unpacked(source, torch.float32 if number_format == torch.float16 else number_format, settings)
    stored_hash = _stored_hash(source, settings) if number_format == torch.float16 else None
    hf, tokenizer = _from_pretrained(source, number_format, settings)
    model = LanguageModel(hf.to(place).eval().requires_grad_(False), tokenizer, name, stored_hash)
    _ = model.blocks  # An architecture that cannot be steered is refused here, not in the middle of the work.
    return model


def default_asset() -> Asset:
    """The bundled language model's files."""
    return ASSETS["smollm2-135m-instruct"]


def resolve(name: str, settings: Settings, progress: Progress | None = None) -> Source:
    """Find the files of a model; fetches the bundled one if need be, and nothing else.

    Raises:
        ModelError: a path that does not exist, or that holds no model.
    """
    if name == DEFAULT:
        asset = default_asset()
        file = asset.files[0]
        return Source(name, str(fetch(asset, settings, progress)), Path(file.path).name, file.sha256)
    try:
        path = Path(name).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (RuntimeError, OSError) as error:  # No such user; a name too long; a folder closed to us.
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{name[:200]} cannot be looked up: {reason}; give a folder, a .gguf file or a hub id"
        ) from error
    if is_file:
        if path.suffix != ".gguf":
            raise ModelError(f"{name} is not a model: give a folder, a .gguf file or a hub id")
        check_gguf(path)
        return Source(name, str(path.parent), path.name)
    if is_folder:
        if (path / "config.json").is_file():
            return Source(name, str(path))
        raise ModelError(f"{name} holds no model: there is no config.json in it")
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name} does not exist; give a folder, a .gguf file, a hub id or 'default'")
    if "/" not in name and did_you_mean(name, [DEFAULT]):
        raise ModelError(f"unknown model {name!r}{did_you_mean(name, [DEFAULT])}")
    return Source(name, name)


def check_gguf(path: Path) -> None:
    """Refuse a file that is no GGUF, or that ends before its header does.

    Raises:
        ModelError: with what is wrong.
    """
    with path.open("rb") as file:
        head = file.read(24)
    if head[:4] != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file (it does not begin with 'GGUF')")
    if len(head) < 24:
        raise ModelError(f"{path} is truncated ({len(head)} bytes); download it again")
    version, n_tensors, _ = struct.unpack("<IQQ", head[4:])
    if version not in (2, 3) or n_tensors == 0:
        raise ModelError(f"{path} holds no model (GGUF version {version}, {n_tensors} tensors)")


def choose_device(name: str | None) -> torch.device:
    """The torch device to run on.

    Raises:
        ModelError: the name is unknown, or there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device {name!r}; use cpu, cuda, cuda:1 or mps") from error
    if device.type not in {"cpu", "cuda", "mps"}:
        raise ModelError(f"device {name} is not supported; use cpu, cuda, cuda:1 or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"there is no device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("there is no device mps on this machine; use cpu")
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The number format: as named, else bfloat16 where the device computes in it, else float32.

    Raises:
        ModelError: the name is unknown.
    """
    formats = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if name is not None:
        if name not in formats:
            raise ModelError(f"unknown dtype {name!r}; use one of {', '.join(formats)}")
        return formats[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.float16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else torch.float32


def _unpacked(source: Source, dtype: torch.dtype, settings: Settings) -> Source:
    """The same model as a plain folder in the cache, written there the first time."""
    assert source.gguf is not None
    path = Path(source.folder) / source.gguf
    if path.stat().st_size > _UNPACK_LIMIT_BYTES:
        return source
    sha256 = source.sha256 or sha256_file(path)
    name = str(dtype).removeprefix("torch.")
    folder = settings.cache / "unpacked" / f"{sha256[:32]}-{name}"
    with _quiet():
        unpack(folder, lambda: _from_pretrained(source, dtype, settings))
    return Source(source.name, str(folder))


def _stored_hash(source: Source, settings: Settings) -> str:
    """The weights' fingerprint before they are rounded to float16: it rounds to bfloat16, and twice is not once."""
    stored, _ = _from_pretrained(source, "auto" if source.gguf is None else torch.float32, settings)
    return weights_hash(stored.state_dict())


def _from_pretrained(source: Source, dtype: torch.dtype | str, settings: Settings) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Asked once: transformers asks for every file, and each time waits long for a hub that does not answer.
    local = settings.offline or Path(source.folder).is_dir() or not _hub_answers()
    common: dict[str, Any] = {"local_files_only": local}
    extra: dict[str, Any] = {"dtype": dtype}
    if source.gguf is not None:
        common["gguf_file"] = source.gguf
        # Dense weights: the packed kernels compute in float32 only and are not there on every machine.
        extra["quantization_config"] = GgufConfig(dequantize=True)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source.folder, **common)
            hf = AutoModelForCausalLM.from_pretrained(source.folder, **common, **extra)
    except Exception as error:
        if "for this kind of AutoModel" in str(error):
            raise UnsupportedModel(
                f"{source.name} is no decoder-only language model; steersman reads no other"
            ) from error
        raise ModelError(_explain(source, error, settings)) from error
    return hf, tokenizer


def _hub_answers() -> bool:
    """Whether anything at all comes back from the hub's address, by way of the proxy if one is set."""
    from huggingface_hub import constants

    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # It answers; transformers may know its certificate.
    except (OSError, ValueError, http.client.HTTPException):  # ValueError: HF_ENDPOINT is no address.
        return False
    return True


def _explain(source: Source, error: Exception, settings: Settings) -> str:
    """One line on why a model could not be loaded, and what to do."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if source.gguf is not None:
        return f"cannot read {source.name}: {first} (truncated or corrupt? download it again)"
    if Path(source.folder).is_dir():
        return f"cannot read the model in {source.name}: {first}"
    if settings.offline:
        return f"{source.name} is not on this machine and STEERSMAN_OFFLINE or HF_HUB_OFFLINE is set; unset it or use 'default'"
    kind = type(error).__name__
    if kind in {"RepositoryNotFoundError", "GatedRepoError"} or "not a valid model identifier" in str(error):
        return f"unknown model {source.name!r} on the hub (or it is private: log in with `hf auth login`); check the spelling"
    return f"cannot load {source.name!r}: {first}; is the hub reachable? 'default' needs no network"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own progress bars and advice; ours are enough."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    gguf_bar = gguf.tqdm  # It heeds no setting.
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf.tqdm = functools.partial(gguf_bar, disable=True)
    try:
        yield
    finally:
        gguf.tqdm = gguf_bar
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
