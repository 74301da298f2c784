"""Train a TopK or BatchTopK autoencoder on batches of activations. Knows nothing of models, texts or files.

    x    = h * scale - b_dec                         scale makes the mean norm sqrt(d_model)
    pre  = x @ encoder.T + b_enc                     in bfloat16 where the device computes in it
    acts = the k largest of each token, or k per token on average over the batch; positive ones
    loss = |acts @ decoder + b_dec - h * scale|^2 / variance  +  aux * the same for the error, by dead latents alone

Gradients are written out by hand and exact for the latents that fire; decoder rows keep norm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.models.language_model import ModelRef
from steersman.models.load import choose_dtype
from steersman.sae.config import SaeConfig
from steersman.sae.model import SparseAutoencoder
from steersman.sae.sparse import Fired, by_latent, decoded_with_slopes, summed_by_latent, top_of_batch, top_per_token

PARAMETERS = ("encoder", "decoder", "b_enc", "b_dec")
_AUX_TOKENS = 1024
_THRESHOLD_RATE = 0.01
_GUESS = 0.95
_MEDIAN_STEPS = 20


@fact
class TrainSettings:
    """What is trained, and how."""

    architecture: Literal["batchtopk", "topk"] = "batchtopk"
    """k latents per token on average (arXiv:2412.06410), or exactly (arXiv:2406.04093)."""
    n_latents: int = 8192
    k: int = 40
    tokens: int = 10_000_000
    """Tokens to train on; stored activations are read again when there are fewer."""
    batch_tokens: int = 4096
    learning_rate: float = 4e-4
    """Of Adam, at its height."""
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    decay_share: float = 0.2
    """Share of the steps over which it falls to 0 in the end."""
    aux_coefficient: float = 1 / 32
    """Weight of the loss that revives dead latents."""
    aux_k: int | None = None
    """Dead latents that explain the error of one token; None: half of d_model."""
    dead_tokens: int = 500_000
    """A latent that has not fired for so many tokens is dead."""
    seed: int = 0
    window_tokens: int = 262_144
    """Activations held in memory to be shuffled: 2 * d_model bytes each."""

    def __post_init__(self) -> None:
        checks = [
            (self.architecture in ("batchtopk", "topk"), "architecture", "batchtopk or topk"),
            (self.n_latents >= 1, "n_latents", "1 or more"),
            (1 <= self.k <= self.n_latents, "k", f"between 1 and the {self.n_latents} latents"),
            (self.batch_tokens >= 2, "batch_tokens", "2 or more"),
            (self.tokens >= self.batch_tokens, "tokens", f"at least one batch of {self.batch_tokens}"),
            (math.isfinite(self.learning_rate) and self.learning_rate > 0, "learning_rate", "above 0"),
            (0 <= self.warmup_share <= 1, "warmup_share", "between 0 and 1"),
            (0 <= self.decay_share <= 1, "decay_share", "between 0 and 1"),
            (math.isfinite(self.aux_coefficient) and self.aux_coefficient >= 0, "aux_coefficient", "0 or more"),
            (self.aux_k is None or self.aux_k >= 1, "aux_k", "1 or more"),
            (self.dead_tokens >= 1, "dead_tokens", "1 or more"),
        ]
        for good, name, rule in checks:
            if not good:
                raise DataError(f"{name} must be {rule}, not {getattr(self, name)!r}")

    @property
    def steps(self) -> int:
        """Batches to train on."""
        return self.tokens // self.batch_tokens

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of one step, counted from 0."""
        rise = (step + 1) / max(self.warmup_share * self.steps, 1)
        fall = (self.steps - step) / max(self.decay_share * self.steps, 1)
        return self.learning_rate * min(1.0, rise, fall)


@fact
class StepFacts:
    """What one batch showed."""

    loss: float
    """With the part for dead latents."""
    explained_variance: float
    """1 - squared error / variance, within the batch."""
    l0: float
    """Mean number of latents that fire per token."""
    n_dead: int
    """Latents that have not fired for `dead_tokens`."""


class Trainer:
    """Weights under training, with all that is needed to go on later. `step` changes them in place."""

    def __init__(self, settings: TrainSettings, d_model: int, scale: float, device: torch.device | None = None) -> None:
        device = device or torch.device("cpu")
        self.settings, self.scale, self.d_model = settings, scale, d_model
        self.step_number = 0
        random = torch.Generator().manual_seed(settings.seed)
        decoder = torch.randn(settings.n_latents, d_model, generator=random).to(device)
        decoder /= decoder.norm(dim=1, keepdim=True)
        self.decoder: Float[Tensor, "latents d_model"] = decoder
        self.encoder: Float[Tensor, "latents d_model"] = decoder.clone()
        self.b_enc: Float[Tensor, " latents"] = torch.zeros(settings.n_latents, device=device)
        self.b_dec: Float[Tensor, " d_model"] = torch.zeros(d_model, device=device)
        self.threshold = 0.0
        """Running mean of the smallest activation that a batch kept."""
        self.idle_tokens: Int[Tensor, " latents"] = torch.zeros(settings.n_latents, dtype=torch.long, device=device)
        """Tokens since each latent fired."""
        self._dtype = choose_dtype(None, device)
        shape = (settings.batch_tokens, settings.n_latents)
        self._pre = torch.empty(shape, dtype=self._dtype, device=device)
        self._mask = torch.empty(shape, dtype=torch.bool, device=device)
        parameters = [torch.nn.Parameter(getattr(self, name), requires_grad=False) for name in PARAMETERS]
        # A parameter shares its storage with the tensor that it was made from.
        self.optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)

    @torch.no_grad()
    def centre(self, batch: Float[Tensor, "tokens d_model"]) -> None:
        """Start the decoder's bias at the geometric median of a sample, which outliers do not move."""
        rows = self._scaled(batch)
        median = rows.mean(0)
        for _ in range(_MEDIAN_STEPS):  # Weiszfeld's algorithm.
            weights = 1 / (rows - median).norm(dim=1).clamp(min=1e-6)
            median = (weights[:, None] * rows).sum(0) / weights.sum()
        self.b_dec.copy_(median)

    @torch.no_grad()
    def step(self, batch: Float[Tensor, "tokens d_model"]) -> StepFacts:
        """One batch of raw activations: forward, gradients, one step of Adam.

        Raises:
            DataError: the loss is not finite.
        """
        target = self._scaled(batch)
        x = target - self.b_dec
        pre = self._pre_activations(x)
        fired = self._choose(pre)
        decoded, values = decoded_with_slopes(fired, self.decoder)
        error = decoded.detach() + self.b_dec - target
        variance = (target - target.mean(0)).square().sum()
        unexplained = error.square().sum() / variance
        slope = error * (2 / variance)
        d_values = torch.autograd.grad(decoded, values, slope)[0] * (fired.values > 0)
        places = by_latent(fired, self.settings.n_latents)
        gradients = {
            "encoder": summed_by_latent(fired, places, d_values, x),
            "decoder": summed_by_latent(fired, places, fired.values, slope),
            "b_enc": torch.zeros_like(self.b_enc).index_add_(0, fired.latents, d_values),
        }
        # x holds -b_dec: what the encoder's inputs pass on comes off.
        gradients["b_dec"] = slope.sum(0) - gradients["b_enc"] @ self.encoder
        dead = self._count(fired)
        aux = self._revive(dead, pre, x, error, gradients)
        loss = float(unexplained) + self.settings.aux_coefficient * aux
        if not math.isfinite(loss):
            raise DataError(
                f"training broke down at step {self.step_number}: the loss is not finite; lower the learning rate"
            )
        self._update(gradients)
        self.step_number += 1
        n_fired = int((fired.values > 0).sum())
        return StepFacts(
            loss=loss, explained_variance=1 - float(unexplained), l0=n_fired / len(batch), n_dead=len(dead)
        )

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, Adam's averages included; views, not copies."""
        tensors = {name: getattr(self, name) for name in (*PARAMETERS, "idle_tokens")}
        for name, parameter in zip(PARAMETERS, self.optimiser.param_groups[0]["params"], strict=True):
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, step_number: int, threshold: float, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state` of a trainer with the same settings.

        Raises:
            DataError: a tensor is missing or of another shape.
        """
        self.step_number, self.threshold = step_number, threshold
        try:
            for name in (*PARAMETERS, "idle_tokens"):
                getattr(self, name).copy_(tensors[name])
            for name, parameter in zip(PARAMETERS, self.optimiser.param_groups[0]["params"], strict=True):
                averages = {
                    key: tensors[f"adam.{name}.{key}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")
                }
                if any(average.shape != parameter.shape for average in averages.values()):
                    raise KeyError(name)
                self.optimiser.state[parameter] = {
                    "step": tensors[f"adam.{name}.step"].to(parameter.device),
                    **averages,
                }
        except (KeyError, RuntimeError) as error:
            raise DataError(f"the checkpoint does not fit these settings ({error}); train in another folder") from error

    def autoencoder(self, layer: int, model: ModelRef | None = None, origin: str = "") -> SparseAutoencoder:
        """What has been trained so far, in the form that everything else uses."""
        settings = self.settings
        config = SaeConfig(
            architecture=settings.architecture,
            d_model=self.d_model,
            d_sae=settings.n_latents,
            layer=layer,
            k=settings.k,
            normalise="expected_norm",
            input_scale=self.scale,
            model=model,
            origin=origin,
        )
        threshold = torch.full_like(self.b_enc, self.threshold) if settings.architecture == "batchtopk" else None
        return SparseAutoencoder(
            config, W_enc=self.encoder.T, b_enc=self.b_enc, W_dec=self.decoder, b_dec=self.b_dec, threshold=threshold
        )

    def _scaled(self, batch: Tensor) -> Tensor:
        return batch.to(self.decoder.device).float().mul_(self.scale)

    def _pre_activations(self, x: Tensor) -> Tensor:
        # Into memory that is kept: fresh pages for tokens x latents would cost half as much again as the product.
        out = self._pre[: len(x)]
        return torch.addmm(self.b_enc.to(self._dtype), x.to(self._dtype), self.encoder.to(self._dtype).T, out=out)

    def _choose(self, pre: Tensor) -> Fired:
        if self.settings.architecture == "topk":
            return top_per_token(pre, self.settings.k)
        fired, smallest = top_of_batch(pre, self.settings.k, _GUESS * self.threshold, self._mask[: len(pre)])
        # arXiv:2412.06410 section 3.3 averages the smallest kept activation over training data; ours is a running mean,
        # so that it follows the weights.
        rate = _THRESHOLD_RATE if self.step_number else 1.0
        self.threshold += rate * (smallest - self.threshold)
        return fired

    def _count(self, fired: Fired) -> Int[Tensor, " dead"]:
        """Note which latents fired; the ones that are dead."""
        self.idle_tokens += len(fired.offsets)
        self.idle_tokens[fired.latents[fired.values > 0]] = 0
        return (self.idle_tokens >= self.settings.dead_tokens).nonzero().squeeze(1)

    def _revive(self, dead: Tensor, pre: Tensor, x: Tensor, error: Tensor, gradients: dict[str, Tensor]) -> float:
        """Let dead latents explain what the others leave over; adds to the gradients, gives the loss.

        AuxK of arXiv:2406.04093, appendix A.2, on the first tokens of the batch only.
        """
        if not len(dead) or not self.settings.aux_coefficient:
            return 0.0
        n = min(_AUX_TOKENS, len(x))
        left, rows = -error[:n], self.decoder[dead]
        values, chosen = pre[:n, dead].topk(min(self.settings.aux_k or max(1, self.d_model // 2), len(dead)), dim=-1)
        acts = torch.zeros(n, len(dead), device=x.device).scatter_(1, chosen, values.float().relu())
        difference = self._product(acts, rows) - left
        variance = (left - left.mean(0)).square().sum().clamp(min=1e-12)
        slope = difference * (2 * self.settings.aux_coefficient / variance)
        d_acts = self._product(slope, rows.T) * (acts > 0)
        gradients["decoder"].index_add_(0, dead, self._product(acts.T, slope))
        gradients["encoder"].index_add_(0, dead, self._product(d_acts.T, x[:n]))
        gradients["b_enc"].index_add_(0, dead, d_acts.sum(0))
        return float(difference.square().sum() / variance)

    def _product(self, one: Tensor, other: Tensor) -> Tensor:
        return (one.to(self._dtype) @ other.to(self._dtype)).float()

    def _update(self, gradients: dict[str, Tensor]) -> None:
        # Rows of norm 1 move along the sphere only: what points outward would disturb Adam's averages.
        outward = torch.linalg.vecdot(gradients["decoder"], self.decoder)
        gradients["decoder"].addcmul_(outward[:, None], self.decoder, value=-1)
        group = self.optimiser.param_groups[0]
        group["lr"] = self.settings.learning_rate_at(self.step_number)
        for parameter, name in zip(group["params"], PARAMETERS, strict=True):
            parameter.grad = gradients[name]
        self.optimiser.step()
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)
