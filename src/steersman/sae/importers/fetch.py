"""Bring an SAE's files from the Hugging Face hub into its cache. Knows nothing of what is in them."""

from __future__ import annotations

import glob
from pathlib import Path

from steersman.errors import SaeError, StorageError
from steersman.files import storage_errors
from steersman.settings import Settings

_TOP = ("*.json", "*.safetensors", "*.npz", "*.pt", "*.pth")


def fetch(repo: str, path: str | None, settings: Settings) -> Path:
    """The folder or file `path` of a hub repo on this machine, downloaded if need be; None for what lies at its top.

    Where offline mode is on, what the cache holds is used.

    Raises:
        SaeError: no such repo or path, no access to it, or it cannot be reached.
        StorageError: the disk refused.
    """
    from huggingface_hub import constants, snapshot_download

    wanted = _TOP if path is None else (glob.escape(path.strip("/")), f"{glob.escape(path.strip('/'))}/*")
    try:
        with storage_errors(Path(constants.HF_HUB_CACHE)):
            folder = snapshot_download(
                repo,
                allow_patterns=list(wanted),
                ignore_patterns=["*/*"] if path is None else None,
                local_files_only=settings.offline,
            )
    except StorageError:
        raise
    except Exception as error:
        raise SaeError(_explain(repo, error, settings)) from error
    found = Path(folder) / (path or ".").strip("/")
    if not found.exists():
        offline = " in this machine's cache" if settings.offline else ""
        raise SaeError(f"there is no {path} in {repo}{offline}; look at its files on the hub")
    return found


def _explain(repo: str, error: Exception, settings: Settings) -> str:
    kind = type(error).__name__
    if settings.offline:
        return (
            f"{repo} is not on this machine, and offline mode is on (STEERSMAN_OFFLINE or HF_HUB_OFFLINE); switch it off, or "
            "fetch its files elsewhere and name their folder"
        )
    if kind == "GatedRepoError":
        return f"{repo} wants you to accept its terms on the hub first; do so, and log in with `hf auth login`"
    if kind in {"RepositoryNotFoundError", "HFValidationError"}:
        return (
            f"there is no repo {repo!r} on the hub (or it is private: log in with `hf auth login`); check the spelling"
        )
    first = (str(error).strip().splitlines() or [kind])[0][:200]
    return f"cannot fetch {repo}: {first}; is the hub reachable? A local folder needs no network"
