"""Where SAEs are found by name: the shipped one, those in the user's library, and any folder that holds one.

    default                 ships with the package, for the bundled model
    gpt2-small-layer-6      STEERSMAN_CACHE/saes/gpt2-small-layer-6, where `steersman sae import` and `train` put them
    ./my-sae                a folder

A folder holds `cfg.json`, `sae_weights.safetensors` and, once it has been made, `index/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from steersman.errors import SaeError, did_you_mean
from steersman.sae.config import SaeConfig, SaeRef
from steersman.sae.file import CONFIG_FILE, load_sae, read_config
from steersman.sae.model import SparseAutoencoder
from steersman.settings import Settings

DEFAULT = "default"
"""Name of the SAE that ships with the package."""
INDEX_FOLDER = "index"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class SaeEntry:
    """An SAE that is there, its weights not read yet."""

    name: str
    folder: Path
    config: SaeConfig

    @property
    def index_folder(self) -> Path:
        """Where its feature index is, or will be."""
        return self.folder / INDEX_FOLDER

    def load(self, device: str = "cpu") -> SparseAutoencoder:
        """Read the weights.

        Raises:
            SaeError: they are missing or damaged.
        """
        return load_sae(self.folder, device=device)


def shelf(cache: Path) -> Path:
    """Folder of the user's own SAEs."""
    return cache / "saes"


def place_for(name: str, cache: Path) -> Path:
    """Folder for a new SAE: a path as it stands, a bare name in the library.

    Raises:
        SaeError: the name of the shipped one, or no name at all.
    """
    if "/" in name or "\\" in name or (name and Path(name).is_dir()):
        return Path(name)
    if name == DEFAULT or not _NAME.fullmatch(name):
        raise SaeError(f"an SAE cannot be called {name!r}; use letters, digits, dots and dashes, or a path")
    return shelf(cache) / name


def list_saes(cache: Path | None = None) -> list[SaeEntry]:
    """The shipped SAE and those in the library, by name; what is damaged or unfinished is left out."""
    found = []
    for name, folder in _known(cache).items():
        try:
            found.append(SaeEntry(name, folder, read_config(folder)))
        except SaeError:
            continue
    return found


def find_sae(name: str = DEFAULT, cache: Path | None = None) -> SaeEntry:
    """An SAE by its name in the library, or by its folder.

    Args:
        name: `default` for the shipped one.
        cache: whose library; by default the one that the settings name.

    Raises:
        SaeError: there is none, or its config is damaged.
    """
    known = _known(cache)
    folder = known.get(name) or Path(name)
    if not folder.is_dir():
        hint = did_you_mean(name, known) or f" (there are: {', '.join(known) or 'none yet'})"
        raise SaeError(f"there is no SAE {name!r}{hint}; make one with: steersman sae import, or: steersman sae train")
    return SaeEntry(name, folder, read_config(folder))


def resolve(ref: SaeRef, cache: Path | None = None) -> SparseAutoencoder:
    """The very SAE that a recipe or an index names, whatever it is called here.

    Raises:
        SaeError: it is not in the library.
    """
    entries = sorted(list_saes(cache), key=lambda entry: entry.name != ref.id)
    for entry in entries:
        if entry.config.layer == ref.layer:
            sae = entry.load()
            if sae.weights_hash == ref.weights_hash:
                return sae
    raise SaeError(
        f"the SAE {ref.id!r} (layer {ref.layer}, weights {ref.weights_hash[:8]}) is not in the library; "
        "import it first: steersman sae import"
    )


def _known(cache: Path | None) -> dict[str, Path]:
    """Folders by name, the shipped one first."""
    cache = cache or Settings.from_env().cache
    shipped = Path(str(resources.files("steersman") / "data" / "sae"))
    own = shelf(cache)
    folders = sorted(own.iterdir()) if own.is_dir() else []
    found = {DEFAULT: shipped} if (shipped / CONFIG_FILE).is_file() else {}
    return found | {folder.name: folder for folder in folders if (folder / CONFIG_FILE).is_file()}
