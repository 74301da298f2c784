"""A sparse autoencoder: which latents fire at a residual, and the residual they make. Knows nothing of files or text.

    x     = normalise(h) - b_dec           b_dec only where `subtract_decoder_bias`
    pre   = x @ W_enc + b_enc
    acts  = pre where it fires, else 0     relu: above 0; jumprelu, batchtopk: above the latent's threshold;
                                           topk: above 0 and among the k largest of the token
    h_hat = denormalise(acts @ W_dec + b_dec)

All arithmetic is float32, whatever the residuals are. Latents fire independently of each other except under topk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import SaeError
from steersman.sae.config import SaeConfig
from steersman.sae.normalise import denormalised, fixed_scale, normalised
from steersman.sae.screen import Screen
from steersman.sae.weights import SaeWeights, checked

__all__ = ["LatentRows", "SaeConfig", "SparseActivations", "SparseAutoencoder"]

# Pre-activations held at once while many tokens are encoded: 128 MiB.
_CHUNK_ELEMENTS = 1 << 25


class SparseActivations(NamedTuple):
    """The latents that fire at each token, largest first; unused places hold value 0."""

    ids: Int[Tensor, "*batch n"]
    values: Float[Tensor, "*batch n"]


class LatentRows(NamedTuple):
    """One latent on the raw residual stream: it is `v = encoder_row @ h + encoder_bias` where `v > threshold`, else 0."""

    encoder_row: Float[Tensor, " d_model"]
    encoder_bias: float
    decoder_row: Float[Tensor, " d_model"]
    """What one unit of activation adds to the residual stream."""
    threshold: float


class SparseAutoencoder(SaeWeights):
    """Weights and what they compute. Immutable: nothing writes to the tensors after construction."""

    # --- encode

    def pre_activations(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """What every latent reads, before it is decided whether it fires.

        Raises:
            SaeError: the residuals have another width, or are on another device.
        """
        return F.linear(self.encoder_input(h), self.encoder, self.b_enc)

    def encode(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Activation of every latent at every token; 4 · d_sae bytes a token. `encode_sparse` keeps those that fire.

        Raises:
            SaeError: as `pre_activations`.
        """
        return self._fired(self.pre_activations(h))

    def fire(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Activations that pre-activations lead to: `encode(h)` is `fire(pre_activations(h))`. For changed pre-activations."""
        return self._fired(pre.clone())

    def encode_sparse(self, h: Float[Tensor, "*batch d_model"], max_features: int | None = None) -> SparseActivations:
        """The latents that fire, largest first. Works in chunks: memory does not grow with tokens times latents.

        `n` is k for topk, else the largest number that fire at one token (at least 1); at most `max_features`, and then
        the largest activations are kept.

        Raises:
            SaeError: as `pre_activations`.
        """
        limit = self.config.d_sae if max_features is None else min(max_features, self.config.d_sae)
        if limit < 1:
            raise SaeError(f"max_features must be at least 1, not {max_features}")
        chunks = [self._largest(chunk, limit) for chunk in self._chunks(h)]
        width = max((chunk.ids.shape[-1] for chunk in chunks), default=1)
        shape = (*h.shape[:-1], width)
        if not chunks:
            return SparseActivations(h.new_zeros(shape, dtype=torch.long), h.new_zeros(shape, dtype=torch.float32))
        ids, values = (
            torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in parts]).reshape(shape)
            for parts in zip(*chunks, strict=True)
        )
        return SparseActivations(ids, values)

    def encode_features(self, h: Float[Tensor, "*batch d_model"], ids: Sequence[int]) -> Float[Tensor, "*batch n_ids"]:
        """Activations of chosen latents: `encode(h)[..., ids]`, up to rounding.

        Where latents fire independently this reads `len(ids)` rows and no others. Under topk a latent competes with all
        others: tokens where none of the chosen reads above 0 are settled by their rows alone, every other token costs
        its full d_model x d_sae product.

        Raises:
            SaeError: an id that does not exist, or as `pre_activations`.
        """
        index = self._index(ids)
        x = self.encoder_input(h)
        pre = F.linear(x, self.encoder[index], self.b_enc[index])
        if self.config.architecture != "topk":
            return self._fired(pre, index)
        flat = x.reshape(-1, x.shape[-1])
        read = pre.reshape(len(flat), len(index))
        contested = (read > 0).any(-1).nonzero().squeeze(-1)
        acts = torch.zeros_like(read)
        for rows in torch.split(contested, self._chunk_tokens):
            acts = acts.index_copy(0, rows, self._fired(F.linear(flat[rows], self.encoder, self.b_enc))[:, index])
        return acts.reshape(pre.shape)

    # --- decode

    def decode(
        self, acts: Float[Tensor, "*batch d_sae"], h: Float[Tensor, "*batch d_model"] | None = None
    ) -> Float[Tensor, "*batch d_model"]:
        """The residuals that dense activations stand for.

        Args:
            acts: activations of all latents.
            h: the residuals they were read from; needed for layer_norm and unit_norm, which give each token its own scale.

        Raises:
            SaeError: a wrong width, or `h` is needed and missing.
        """
        if acts.shape[-1] != self.config.d_sae:
            raise SaeError(
                f"activations of {acts.shape[-1]} latents cannot be decoded by an SAE of {self.config.d_sae}"
            )
        return denormalised(self.config, acts.to(torch.float32) @ self.W_dec + self.b_dec, h)

    def decode_fired(
        self, acts: Float[Tensor, "tokens d_sae"], h: Float[Tensor, "tokens d_model"] | None = None
    ) -> Float[Tensor, "tokens d_model"]:
        """`decode` that reads the decoder rows of what fires and no others: where few do, many times faster. Up to rounding.

        Raises:
            SaeError: `h` is needed and missing.
        """
        tokens, ids = acts.nonzero(as_tuple=True)
        starts = torch.searchsorted(tokens, torch.arange(len(acts), device=acts.device))
        summed = F.embedding_bag(ids, self.W_dec, starts, mode="sum", per_sample_weights=acts[tokens, ids])
        return denormalised(self.config, summed + self.b_dec, h)

    def decode_sparse(
        self,
        ids: Int[Tensor, "*batch n"],
        values: Float[Tensor, "*batch n"],
        h: Float[Tensor, "*batch d_model"] | None = None,
    ) -> Float[Tensor, "*batch d_model"]:
        """The residuals that sparse activations stand for; reads n decoder rows a token. Arguments as for `decode`.

        Raises:
            SaeError: `h` is needed and missing.
        """
        n, d = ids.shape[-1], self.config.d_model
        summed = F.embedding_bag(
            ids.reshape(-1, n), self.W_dec, mode="sum", per_sample_weights=values.reshape(-1, n).to(torch.float32)
        )
        return denormalised(self.config, (summed + self.b_dec).reshape(*ids.shape[:-1], d), h)

    def reconstruct(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """`decode(encode(h), h)` without ever holding all activations: what the SAE makes of the residuals, in float32.

        Raises:
            SaeError: as `pre_activations`.
        """
        parts = [self._reconstructed(chunk) for chunk in self._chunks(h)]
        return torch.cat(parts).reshape(h.shape) if parts else h.to(torch.float32)

    # --- the same SAE, put differently

    def as_jumprelu(self, threshold: float | Float[Tensor, " d_sae"]) -> SparseAutoencoder:
        """The same weights with latents that fire on their own, above `threshold`; of topk this is an approximation.

        Raises:
            SaeError: a threshold that is not finite, or of the wrong shape.
        """
        config = replace(self.config, architecture="jumprelu", k=None)
        given = torch.as_tensor(threshold, dtype=torch.float32)
        given = given.expand(config.d_sae) if given.ndim == 0 else given
        own = checked("threshold", given, (config.d_sae,), self.device).clamp_(min=0)
        return self._sharing(config, dict(self._tensors()) | {"threshold": own})

    def fold_normalisation(self) -> SparseAutoencoder:
        """The same function with `normalise="none"` and no decoder bias on the input: both are worked into the weights.

        Raises:
            SaeError: layer_norm and unit_norm depend on the token and cannot be folded.
        """
        scale = fixed_scale(self.config)
        config = replace(self.config, normalise="none", input_scale=1.0, subtract_decoder_bias=False)
        folded = {
            "encoder": self.encoder * scale,
            "b_enc": self._folded_bias(slice(None)).to(torch.float32),
            "W_dec": self.W_dec / scale,
            "b_dec": self.b_dec / scale,
        }
        return self._sharing(config, dict(self._tensors()) | folded)

    def latent_rows(self, latent: int) -> LatentRows:
        """What one latent reads from the raw residual stream and what it writes, free of the SAE from then on.

        Raises:
            SaeError: no such latent; a topk SAE, where whether it fires depends on all others; or an input normalisation
                that depends on the token.
        """
        if self.config.architecture == "topk":
            raise SaeError("a latent of a topk SAE competes with all others; give it a threshold first (as_jumprelu)")
        scale, (index,) = fixed_scale(self.config), self._index([latent]).tolist()
        return LatentRows(
            encoder_row=self.encoder[index] * scale,
            encoder_bias=float(self._folded_bias(slice(index, index + 1))),
            decoder_row=self.W_dec[index] / scale,
            threshold=0.0 if self.threshold is None else float(self.threshold[index]),
        )

    # --- what reading single latents needs

    @cached_property
    def screen(self) -> Screen | None:
        """Bounds of all pre-activations from half the bytes, made once; None where the product itself is as fast."""
        return Screen(self.encoder, self.b_enc) if Screen.pays(self.encoder) else None

    def encoder_input(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """`x` of the head of this module, in float32: what every row of `encoder` is multiplied with.

        Raises:
            SaeError: as `pre_activations`.
        """
        if h.shape[-1] != self.config.d_model:
            raise SaeError(f"residuals of width {h.shape[-1]} do not fit an SAE of d_model {self.config.d_model}")
        if h.device != self.device:
            raise SaeError(
                f"the residuals are on {h.device}, the SAE on {self.device}; move it: sae.to({str(h.device)!r})"
            )
        x = normalised(self.config, h.to(torch.float32))[0]
        return x - self.b_dec if self.config.subtract_decoder_bias else x

    # --- inside

    def _fired(self, pre: Tensor, index: Tensor | None = None) -> Tensor:
        """Activations for pre-activations that nobody else holds: written in their place, as they are large."""
        if self.threshold is not None:
            threshold = self.threshold if index is None else self.threshold[index]
            return pre.masked_fill_(pre <= threshold, 0.0)
        if self.config.architecture == "relu":
            return pre.relu_()
        values, ids = pre.topk(self._k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, ids, values.relu())

    def _largest(self, h: Tensor, limit: int) -> SparseActivations:
        pre = self.pre_activations(h)
        if self.config.architecture == "topk":
            values, ids = pre.topk(min(self._k, limit), dim=-1)
            return SparseActivations(ids, values.relu())
        acts = self._fired(pre)
        width = int((acts > 0).sum(-1).max().clamp(1, limit))
        values, ids = acts.topk(width, dim=-1)
        return SparseActivations(ids, values)

    def _reconstructed(self, h: Tensor) -> Tensor:
        if self.config.architecture == "topk":
            return self.decode_sparse(*self._largest(h, self._k), h)
        return self.decode_fired(self.encode(h), h)

    @property
    def _k(self) -> int:
        assert self.config.k is not None
        return self.config.k

    @property
    def _chunk_tokens(self) -> int:
        return max(1, _CHUNK_ELEMENTS // self.config.d_sae)

    def _chunks(self, h: Tensor) -> Sequence[Tensor]:
        return torch.split(flat, self._chunk_tokens) if len(flat := h.reshape(-1, h.shape[-1])) else ()

    def _index(self, ids: Sequence[int]) -> Tensor:
        wrong = [i for i in ids if not 0 <= i < self.config.d_sae]
        if wrong:
            raise SaeError(f"latent {wrong[0]} does not exist; this SAE has {self.config.d_sae}, counted from 0")
        return torch.as_tensor(list(ids), dtype=torch.long, device=self.device)

    def _folded_bias(self, rows: slice) -> Tensor:
        # In double precision: the decoder bias of big models is large beside what a latent reads.
        bias = self.b_enc[rows].double()
        return bias - self.encoder[rows].double() @ self.b_dec.double() if self.config.subtract_decoder_bias else bias
