"""The weights of a sparse autoencoder: checked once, then only read, moved and hashed. Knows nothing of what they compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import SaeError
from steersman.models.language_model import ModelRef
from steersman.sae.config import WITH_THRESHOLD, SaeConfig, SaeRef


class SaeWeights:
    """A config and its tensors, all float32 and on one device."""

    config: SaeConfig
    encoder: Float[Tensor, "d_sae d_model"]
    """`W_enc` as rows: a handful of latents is then a handful of contiguous rows."""
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " d_sae"] | None

    def __init__(
        self,
        config: SaeConfig,
        *,
        W_enc: Float[Tensor, "d_model d_sae"],  # noqa: N803
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_model"],  # noqa: N803
        b_dec: Float[Tensor, " d_model"],
        threshold: Float[Tensor, " d_sae"] | None = None,
    ) -> None:
        """Copy the tensors to float32, on the device where `W_enc` is.

        Raises:
            SaeError: a wrong shape, a NaN or infinite weight, or a threshold missing or out of place. A negative
                threshold is the same as 0 and becomes that.
        """
        if (threshold is not None) != (config.architecture in WITH_THRESHOLD):
            needed = "needs a threshold for every latent" if threshold is None else "has no thresholds; leave them out"
            raise SaeError(f"a {config.architecture} SAE {needed}")
        d, n, device = config.d_model, config.d_sae, W_enc.device
        self.config = config
        self.encoder = checked("W_enc", W_enc, (d, n), device, transpose=True)
        self.b_enc = checked("b_enc", b_enc, (n,), device)
        self.W_dec = checked("W_dec", W_dec, (n, d), device)
        self.b_dec = checked("b_dec", b_dec, (d,), device)
        self.threshold = None if threshold is None else checked("threshold", threshold, (n,), device).clamp_(min=0)

    def __repr__(self) -> str:
        c = self.config
        return f"{type(self).__name__}({c.architecture}, layer {c.layer}, d_model {c.d_model}, {c.d_sae} latents)"

    @property
    def W_enc(self) -> Float[Tensor, "d_model d_sae"]:  # noqa: N802
        """Encoder weights, one column a latent."""
        return self.encoder.T

    @property
    def device(self) -> torch.device:
        """Where the weights are; residuals must be there too."""
        return self.encoder.device

    def to(self, device: torch.device | str) -> Self:
        """The same SAE with its weights on `device`."""
        return self._sharing(self.config, {name: tensor.to(device) for name, tensor in self._tensors()})

    def for_model(self, model: ModelRef) -> Self:
        """The same SAE, said to belong to `model`; for published SAEs, whose files hold no fingerprint of it."""
        return self._sharing(replace(self.config, model=model), dict(self._tensors()))

    @cached_property
    def weights_hash(self) -> str:
        """Hex SHA-256 of everything that decides what it computes: architecture, normalisation and every weight.

        Weights kept in a narrower format are other weights: an SAE has the hash of the form it was last loaded in.
        """
        c = self.config
        facts = [c.architecture, c.k, c.normalise, c.input_scale, c.subtract_decoder_bias]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name, tensor in self._tensors():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().astype("<f4", copy=False).data)
        return digest.hexdigest()

    def ref(self, name: str) -> SaeRef:
        """What recipes and indexes call this SAE by."""
        return SaeRef(id=name, layer=self.config.layer, weights_hash=self.weights_hash)

    def check_fits(self, model: ModelRef, layer: int | None = None) -> None:
        """Refuse a model that the SAE is known not to belong to, or a layer that it does not read.

        Raises:
            SaeError: with both names.
        """
        own = self.config.model
        if own is not None and not own.matches(model):
            raise SaeError(
                f"this SAE was trained on {own.id}, which is not the model {model.id}; choose an SAE of that model"
            )
        if layer is not None and layer != self.config.layer:
            raise SaeError(
                f"this SAE reads layer {self.config.layer}, not layer {layer}; choose an SAE of layer {layer}"
            )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from (("encoder", self.encoder), ("b_enc", self.b_enc), ("W_dec", self.W_dec), ("b_dec", self.b_dec))
        if self.threshold is not None:
            yield "threshold", self.threshold

    def _sharing(self, config: SaeConfig, tensors: dict[str, Tensor]) -> Self:
        # Without the checks and copies of the constructor: the tensors come from an SAE that has been through them.
        made = object.__new__(type(self))
        made.config, made.threshold = config, None
        for name, tensor in tensors.items():
            setattr(made, name, tensor)
        return made


def checked(
    name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device, *, transpose: bool = False
) -> Tensor:
    """A contiguous float32 copy that shares nothing with the original.

    Raises:
        SaeError: another shape than `shape` (before transposing), or a value that is NaN or infinite.
    """
    if tuple(tensor.shape) != shape:
        raise SaeError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    own = tensor.detach().T if transpose else tensor.detach()
    own = own.to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(own).all():
        bad = int((~torch.isfinite(own)).sum())
        raise SaeError(f"{name} must be finite; {bad} of {own.numel()} values are NaN or infinite")
    return own
