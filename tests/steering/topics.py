"""An SAE on the tiny model, an encoder of words, and texts of two topics."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from steersman.sae.config import Architecture, SaeConfig
from steersman.sae.model import SparseAutoencoder

SHIPS = [f"The {a} ship sailed the {b} sea." for a in ("old", "fast", "grey") for b in ("cold", "wide", "calm")]
CODE = [f"def {a}(x): return {b} + 1" for a in ("go", "run", "add") for b in ("x", "2 * x", "len(x)")]
MIXED = SHIPS[:4] + CODE[:5] + ["Nothing of the kind.", "A quiet day at home with tea."]


class WordEncoder:
    """Bags of words in hashed places."""

    name, width = "words", 64

    @property
    def neutral(self) -> Tensor:
        return self.encode(["a"])[0]

    def encode(self, texts: Sequence[str]) -> Tensor:
        made = torch.zeros(len(texts), self.width)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                made[row, zlib.crc32(word.encode()) % self.width] += 1
        return F.normalize(made, dim=-1)


def tiny_sae(architecture: Architecture = "topk", *, layer: int = 2, latents: int = 96) -> SparseAutoencoder:
    """A random SAE of the tiny model's width."""
    made = torch.Generator().manual_seed(7)
    rows = F.normalize(torch.randn(latents, 32, generator=made), dim=-1)
    config = SaeConfig(
        architecture=architecture, d_model=32, d_sae=latents, layer=layer, k=6 if architecture == "topk" else None
    )
    return SparseAutoencoder(config, W_enc=rows.T, b_enc=torch.zeros(latents), W_dec=rows, b_dec=torch.zeros(32))
