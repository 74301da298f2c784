"""Importers turn published SAEs into ours, once; one file each. A new format is a file, a line in `FORMATS` and a test."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from steersman.sae.importers import dictionary_learning, gemma_scope, goodfire, openai, sae_lens, sparsify
from steersman.sae.model import SparseAutoencoder

__all__ = ["FORMATS", "Importer"]


class Importer(Protocol):
    """Converts what lies at a local path."""

    def __call__(self, path: Path, *, layer: int | None = None) -> SparseAutoencoder:
        """The SAE; `layer` (ours: the output of block i) where the files do not say it, or say it wrongly.

        Raises:
            SaeError: not of this format, damaged, or of a kind that steersman does not read.
        """


FORMATS: dict[str, Importer] = {
    "dictionary_learning": dictionary_learning.read,
    "gemma_scope": gemma_scope.read,
    "goodfire": goodfire.read,
    "openai": openai.read,
    "sae_lens": sae_lens.read,
    "sparsify": sparsify.read,
}
