"""Edits and condition readings of many rows, stacked into tensors so that each family runs in one go.

The stacks know which row an entry belongs to, and nothing of positions, schedules or what a condition gates; see `plan`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steersman.sae.model import SparseAutoencoder
from steersman.steering import ops
from steersman.steering.condition import Above
from steersman.steering.edits import Ablate, Add, Clamp, Edit, Rotate, Scale, Swap, Weight
from steersman.steering.target import Target, read

Encoders = tuple[Float[Tensor, "entries d_model"], Float[Tensor, " entries"], Float[Tensor, " entries"]]
"""Rows, biases and thresholds of what is read; see `target.read`."""


class Group:
    """Edits of one layer and family, applied in one go; each has its own where, schedule and condition."""

    def __init__(self, entries: Sequence[tuple[int, Edit]], stack: Stack, device: torch.device) -> None:
        self.stack = stack
        self.rows = [row for row, _ in entries]
        ways = [(edit.where, edit.schedule) for _, edit in entries]
        self.ways = list(dict.fromkeys(ways))
        """The different wheres and schedules."""
        self.way = torch.tensor([self.ways.index(way) for way in ways], device=device)
        self.index = torch.tensor(self.rows, device=device)
        self.conditions = {
            entry: (row, edit.when) for entry, (row, edit) in enumerate(entries) if edit.when is not None
        }


class AddStack:
    """Stacked `add` edits, strengths and units folded into the vectors."""

    def __init__(self, entries: Sequence[tuple[int, Add]], mean_norm: float, device: torch.device) -> None:
        vectors = [
            edit.vector.tensor * (edit.strength if edit.unit == "raw" else edit.strength * mean_norm / edit.vector.norm)
            for _, edit in entries
        ]
        self.vectors = torch.stack(vectors).to(device)

    def change(self, hidden: Tensor, gain: Tensor) -> Tensor:
        """See `ops.add`."""
        return ops.add(self.vectors, gain)


class AffineStack:
    """Stacked `clamp`, `scale` and `ablate` edits."""

    def __init__(
        self, entries: Sequence[tuple[int, Clamp | Scale | Ablate]], mean_norm: float, device: torch.device
    ) -> None:
        self.encoders = _encoders([edit.target for _, edit in entries], device)
        self.decoder = torch.stack([edit.target.decoder() for _, edit in entries]).to(device)
        changes = [_slope_and_offset(edit, mean_norm) for _, edit in entries]
        self.slope = torch.tensor([slope for slope, _ in changes], device=device)
        self.offset = torch.tensor([offset for _, offset in changes], device=device)

    def change(self, hidden: Tensor, gain: Tensor) -> Tensor:
        """See `ops.affine`."""
        return ops.affine(hidden, self.encoders, self.decoder, self.slope, self.offset, gain)


class RotateStack:
    """Stacked `rotate` edits, strengths folded into the angles."""

    def __init__(self, entries: Sequence[tuple[int, Rotate]], mean_norm: float, device: torch.device) -> None:
        self.toward = torch.stack([edit.vector.unit().tensor for _, edit in entries]).to(device)
        self.degrees = torch.tensor([edit.degrees * edit.strength for _, edit in entries], device=device)

    def change(self, hidden: Tensor, gain: Tensor) -> Tensor:
        """See `ops.rotate`."""
        return ops.rotate(hidden, self.toward, self.degrees, gain)


class SaeStack:
    """Stacked `weight` or `swap` edits of one SAE, all of one kind and error; their rows are encoded together."""

    def __init__(
        self, entries: Sequence[tuple[int, Weight | Swap]], sae: SparseAutoencoder, device: torch.device
    ) -> None:
        edits = [edit for _, edit in entries]
        self.sae = sae
        self.scores = torch.stack([edit.scores.tensor for edit in edits]).to(device)
        self.swap, self.keep_error = isinstance(edits[0], Swap), edits[0].keep_error
        self.strength = torch.tensor([edit.strength for edit in edits], device=device)
        self.only_shrink = bool(((self.scores >= 0) & (self.scores <= 1)).all())

    def change(self, hidden: Tensor, gain: Tensor) -> Tensor:
        """See `ops.reweigh`."""
        return ops.reweigh(
            self.sae,
            hidden,
            self.scores,
            gain * self.strength[:, None],
            swap=self.swap,
            keep_error=self.keep_error,
            only_shrink=self.only_shrink,
        )


Stack = AddStack | AffineStack | RotateStack | SaeStack

STACKS: dict[str, type[Stack]] = {
    "add": AddStack,
    "clamp": AffineStack,
    "scale": AffineStack,
    "ablate": AffineStack,
    "rotate": RotateStack,
    "weight": SaeStack,
    "swap": SaeStack,
}
"""Which stack holds which kind of edit."""


class Probes:
    """The readings that conditions take at one layer, all rows at once."""

    def __init__(self, entries: Sequence[tuple[int, Above]], mean_norm: float, device: torch.device) -> None:
        self.keys = [(row, id(leaf)) for row, leaf in entries]
        self.rows = torch.tensor([row for row, _ in entries], device=device)
        self.encoders = _encoders([leaf.target for _, leaf in entries], device)
        self.thresholds = torch.tensor([leaf.threshold for _, leaf in entries], device=device)
        scales = [mean_norm if leaf.resolved_measure == "projection" else 1.0 for _, leaf in entries]
        self.scales = torch.tensor(scales, device=device)
        self.is_cosine = torch.tensor([leaf.resolved_measure == "cosine" for _, leaf in entries], device=device)

    def read(
        self, hidden: Float[Tensor, "rows seq d_model"], counts: Bool[Tensor, "rows seq"]
    ) -> dict[tuple[int, int], Bool[Tensor, " seq"]]:
        """Truth of each leaf at each token, by (row, identity of the leaf); false where `counts` is."""
        rows = hidden[self.rows].float()
        row, bias, threshold = (part[:, None] for part in self.encoders)
        reading = read(rows, row, bias, threshold) / self.scales[:, None]
        norms = rows.norm(dim=-1).clamp(min=1e-12)
        reading = torch.where(self.is_cosine[:, None], reading / norms, reading)
        truth = (reading > self.thresholds[:, None]) & counts[self.rows]
        return dict(zip(self.keys, truth, strict=True))


def _encoders(targets: Sequence[Target], device: torch.device) -> Encoders:
    rows, biases, thresholds = zip(*(target.encoder() for target in targets), strict=True)
    return (
        torch.stack(rows).to(device),
        torch.tensor(biases, device=device),
        torch.tensor(thresholds, device=device),
    )


def _slope_and_offset(edit: Clamp | Scale | Ablate, mean_norm: float) -> tuple[float, float]:
    """How the reading `a` changes, `slope * a + offset`, the edit's strength included."""
    match edit:
        case Clamp():
            value = edit.value * (mean_norm if edit.unit == "residual_norm" else 1.0)
            return -edit.strength, edit.strength * value
        case Scale():
            return edit.strength * (edit.factor - 1.0), 0.0
        case Ablate():
            return -edit.strength, 0.0
