"""From what a user names to an SAE: a local path, a release of SAELens, or a hub repo; the format told from the files."""

from __future__ import annotations

from pathlib import Path

from steersman.errors import SaeError, did_you_mean
from steersman.sae.file import CONFIG_FILE, WEIGHTS_FILE
from steersman.sae.importers import FORMATS, dictionary_learning, gemma_scope, sparsify
from steersman.sae.importers.fetch import fetch
from steersman.sae.importers.raw import read_state
from steersman.sae.importers.sae_lens import read_release
from steersman.sae.model import SparseAutoencoder
from steersman.settings import Settings

# The files by which a folder is known.
_MARKS = (
    ("sae_lens", {CONFIG_FILE, WEIGHTS_FILE}),
    ("sparsify", {CONFIG_FILE, sparsify.WEIGHTS}),
    ("dictionary_learning", {dictionary_learning.CONFIG, dictionary_learning.WEIGHTS}),
    ("gemma_scope", {gemma_scope.NPZ}),
    ("gemma_scope", {gemma_scope.SAFETENSORS}),
)
# The tensors by which a PyTorch file is known.
_KEYS = {"encoder_linear.weight": "goodfire", "latent_bias": "openai"}


def import_sae(
    source: str,
    sae_id: str | None = None,
    *,
    format: str | None = None,  # noqa: A002
    layer: int | None = None,
    settings: Settings | None = None,
) -> SparseAutoencoder:
    """Find, fetch and convert a published SAE.

    Args:
        source: a local folder or file, a release of SAELens' directory, or a hub repo (`owner/name`).
        sae_id: the id in the release, or the path inside the folder or repo.
        format: one of `FORMATS`; by default told from the files.
        layer: where the files do not say it.
        settings: by default read from the environment.

    Raises:
        SaeError: it cannot be found, reached or read.
    """
    if format is not None and format not in FORMATS:
        raise SaeError(f"unknown SAE format {format!r}{did_you_mean(format, FORMATS)}; use one of {', '.join(FORMATS)}")
    settings = settings or Settings.from_env()
    local = Path(source).expanduser()
    if local.exists():
        path = local / sae_id if sae_id else local
    elif "/" in source:
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise SaeError(f"{source} does not exist; name a folder, a release of SAELens or a hub repo")
        path = fetch(source, sae_id, settings)
    else:
        if sae_id is None:
            raise SaeError(f"{source} is no local path; of a release of SAELens, name the SAE too")
        return read_release(source, sae_id, settings)
    return FORMATS[format or detect(path)](path, layer=layer)


def detect(path: Path) -> str:
    """The format of the files at a local path: a key of `FORMATS`.

    Raises:
        SaeError: nothing there, or of no known format.
    """
    if not path.exists():
        raise SaeError(f"{path} does not exist")
    if path.is_dir():
        for name, files in _MARKS:
            if all((path / file).is_file() for file in files):
                return name
    elif path.suffix == ".npz" or path.name == gemma_scope.SAFETENSORS:
        return "gemma_scope"
    elif path.suffix in {".pt", ".pth"}:
        state = read_state(path)
        for key, name in _KEYS.items():
            if key in state:
                return name
    raise SaeError(f"{path} holds no SAE of a known format ({', '.join(FORMATS)}); name the folder or file of one SAE")
