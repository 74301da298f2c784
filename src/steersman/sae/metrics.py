"""How well an autoencoder stands for the residual stream, on activations and on what the model then predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.models.blocks import Edit, editing
from steersman.models.language_model import LanguageModel
from steersman.sae.model import SparseAutoencoder

Replacement = Literal["plain", "sae", "zero"]
"""What stands at the layer: the residual itself, its reconstruction, or nothing."""

_CHUNK_TOKENS = 4096


@fact
class Reconstruction:
    """How activations are reconstructed."""

    tokens: int
    explained_variance: float
    """1 - squared error / variance, over all tokens together."""
    l0: float
    """Mean number of latents that fire per token."""
    dead_share: float
    """Share of the latents that fire at none of these tokens."""


@fact
class Prediction:
    """Mean cross-entropy of the next token, in nats, with the layer's output as it is, reconstructed, or zero."""

    tokens: int
    plain: float
    sae: float
    zero: float

    @property
    def recovered(self) -> float:
        """(zero - sae) / (zero - plain): 1 where the reconstruction is as good as the residual itself."""
        return (self.zero - self.sae) / (self.zero - self.plain)


@torch.no_grad()
def reconstruction(sae: SparseAutoencoder, activations: Iterable[Float[Tensor, "tokens d_model"]]) -> Reconstruction:
    """Reconstruct activations given in pieces, shards for example.

    Raises:
        DataError: there are none.
    """
    d = sae.config.d_model
    error, squares, tokens = 0.0, 0.0, 0
    total = torch.zeros(d, dtype=torch.float64, device=sae.device)
    counts = torch.zeros(sae.config.d_sae, dtype=torch.long, device=sae.device)
    for piece in activations:
        for rows in torch.split(piece, _CHUNK_TOKENS):
            h = rows.to(sae.device).float()
            acts = sae.encode_sparse(h)
            error += float((sae.decode_sparse(acts.ids, acts.values, h) - h).double().square().sum())
            squares += float(h.double().square().sum())
            total += h.double().sum(0)
            counts += torch.bincount(acts.ids[acts.values > 0], minlength=len(counts))
            tokens += len(h)
    if not tokens:
        raise DataError("there are no activations to reconstruct; hold some text out, or collect more")
    variance = squares - float(total.square().sum()) / tokens
    return Reconstruction(
        tokens=tokens,
        explained_variance=1 - error / variance,
        l0=int(counts.sum()) / tokens,
        dead_share=float((counts == 0).double().mean()),
    )


@torch.no_grad()
def prediction(
    model: LanguageModel, sae: SparseAutoencoder, sequences: Sequence[Sequence[int]], *, batch_tokens: int = 1024
) -> Prediction:
    """What the model predicts when the output of the SAE's layer is replaced, at all tokens but the first of each sequence.

    The first token is an attention sink that SAEs are not trained on; what follows it directly is not counted either.

    Raises:
        SaeError: the SAE belongs to another model.
        DataError: no sequence has three tokens.
    """
    sae.check_fits(model.ref)
    sequences = sorted((ids for ids in sequences if len(ids) > 2), key=len)
    if not sequences:
        raise DataError("there is no sequence of three tokens or more to predict")
    edits: dict[Replacement, Edit] = {
        "plain": lambda hidden: None,
        "sae": lambda hidden: torch.cat([hidden[:, :1], sae.reconstruct(hidden[:, 1:]).to(hidden.dtype)], 1),
        "zero": lambda hidden: torch.cat([hidden[:, :1], torch.zeros_like(hidden[:, 1:])], 1),
    }
    totals, tokens = dict.fromkeys(edits, 0.0), 0
    for batch in _batches(sequences, batch_tokens):
        tokens += sum(len(ids) - 2 for ids in batch)
        for name, edit in edits.items():
            totals[name] += _loss(model, batch, sae.config.layer, edit)
    return Prediction(tokens=tokens, **{name: total / tokens for name, total in totals.items()})


def _batches(sequences: Sequence[Sequence[int]], batch_tokens: int) -> Iterable[list[Sequence[int]]]:
    """Sequences of similar length, given sorted by it."""
    batch: list[Sequence[int]] = []
    for ids in sequences:
        if batch and (len(batch) + 1) * len(ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(ids)
    yield batch


def _loss(model: LanguageModel, batch: Sequence[Sequence[int]], layer: int, edit: Edit) -> float:
    """Sum of the cross-entropies of all tokens from the third on."""
    width = max(map(len, batch))
    # Padded on the right: causal attention never looks there.
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=model.device)
    with model.lock, editing(model.blocks, {layer: edit}):
        logits = model.hf(input_ids=ids, attention_mask=mask, use_cache=False).logits
    targets = ids[:, 2:].masked_fill(mask[:, 2:] == 0, -100)
    return float(F.cross_entropy(logits[:, 1:-1].float().transpose(1, 2), targets, ignore_index=-100, reduction="sum"))
