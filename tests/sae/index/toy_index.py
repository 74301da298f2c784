"""Indexes made by hand, an SAE for the tiny model, and an encoder for which texts are alike by the words they share."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from tests.tiny import tiny_tokenizer
from torch import Tensor

from steersman.models.language_model import LanguageModel, ModelRef
from steersman.models.residuals import read_residuals
from steersman.sae.config import SaeConfig, SaeRef
from steersman.sae.index.facts import FeatureIndex, IndexFacts, Label, no_contexts
from steersman.sae.model import SparseAutoencoder

WIDTH = 64
N_CONTEXTS, CONTEXT_WIDTH, N_PROMOTED, N_NEIGHBOURS = 3, 24, 4, 2
SAE_HASH = "0" * 64


@dataclass
class WordEncoder:
    """Each word a fixed random direction, each text their sum; remembers how many texts it was asked for."""

    name: str = "words"
    width: int = WIDTH
    asked: list[str] = field(default_factory=list)

    @property
    def neutral(self) -> Tensor:
        return torch.zeros(self.width)

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return F.normalize(torch.stack([self._sum(text) for text in texts]), dim=1) if texts else torch.zeros(0, WIDTH)

    def _sum(self, text: str) -> Tensor:
        words = re.findall(r"\w+", text.lower()) or [text]
        rows = [torch.Generator().manual_seed(zlib.crc32(word.encode())) for word in words]
        return torch.stack([torch.randn(self.width, generator=row) for row in rows]).sum(0)


def context_rows(contexts: Sequence[str], tokenizer: Any, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tokens and activations of one feature: it fires on what stands in [brackets], most on the last token of it."""
    tokens, activations = (part[0] for part in no_contexts(1, *shape))
    for row, written in enumerate(contexts):
        before, _, rest = written.partition("[")
        inside, _, after = rest.partition("]")
        parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, inside, after)]
        ids = [token for part in parts for token in part]
        start, stop = len(parts[0]), len(parts[0]) + len(parts[1])
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        activations[row, start:stop] = torch.arange(1, stop - start + 1).float()
    return tokens, activations


def toy_index(
    features: Sequence[tuple[str | None, Sequence[str]]],
    *,
    density: Sequence[float] | None = None,
    promoted: Sequence[Sequence[int]] | None = None,
    shape: tuple[int, int] = (N_CONTEXTS, CONTEXT_WIDTH),
    sae_hash: str = SAE_HASH,
) -> FeatureIndex:
    """An index of features given as label and contexts; contexts are words in the bytes of the tiny tokenizer."""
    n, tokenizer = len(features), tiny_tokenizer()
    rows = [context_rows(contexts, tokenizer, shape) for _, contexts in features]
    activations = torch.stack([row[1] for row in rows])
    ring = torch.stack([torch.arange(n).roll(-1), torch.arange(n).roll(1)], dim=1)
    return FeatureIndex(
        facts=IndexFacts(
            sae=SaeRef(id="toy", layer=2, weights_hash=sae_hash),
            model=ModelRef(id="tiny", config_hash="0", weights_hash="0"),
            tokens=1_000,
            sources={"toy": 1.0},
        ),
        density=torch.full((n,), 0.01) if density is None else torch.tensor(density),
        mean_activation=torch.ones(n),
        max_activation=activations.amax((1, 2)),
        context_tokens=torch.stack([row[0] for row in rows]),
        context_activations=activations,
        promoted=torch.zeros(n, N_PROMOTED, dtype=torch.long) if promoted is None else torch.tensor(promoted),
        suppressed=torch.zeros(n, N_PROMOTED, dtype=torch.long),
        neighbours=ring,
        cosines=torch.tensor([[0.9, 0.5]]).repeat(n, 1),
        labels=tuple(None if label is None else Label(text=label) for label, _ in features),
    )


def toy_sae_for(model: LanguageModel, layer: int = 2, seed: int = 0, d_sae: int = 60) -> SparseAutoencoder:
    """A random ReLU SAE of a tiny model, of which about one latent in ten fires at a token."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 260, (64,), generator=made).tolist()
    h = read_residuals(model, [ids], [layer])[0][layer].float()
    encoder = torch.randn(model.d_model, d_sae, generator=made)
    config = SaeConfig(
        architecture="relu",
        d_model=model.d_model,
        d_sae=d_sae,
        layer=layer,
        subtract_decoder_bias=False,
        model=model.ref,
    )
    return SparseAutoencoder(
        config,
        W_enc=encoder,
        b_enc=-(h @ encoder).quantile(0.9, dim=0),
        W_dec=torch.randn(d_sae, model.d_model, generator=made),
        b_dec=torch.zeros(model.d_model),
    )
