"""Which features write in the same direction. Knows nothing of when they fire."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import SaeError

# Cosines held at once: 128 MiB.
_CHUNK_ELEMENTS = 1 << 25


class Neighbours(NamedTuple):
    """Of each feature the nearest others, nearest first."""

    ids: Int[Tensor, "features m"]
    cosines: Float[Tensor, "features m"]


@torch.no_grad()
def nearest(rows: Float[Tensor, "features d_model"], m: int = 8) -> Neighbours:
    """The `m` features whose decoder rows have the largest cosine with each feature's own; fewer where there are fewer.

    Takes `features² * d_model` multiplications and memory that does not grow with `features²`. A row of zeros has
    cosine 0 with every other. Features that never fire count like any other: `FeatureIndex.live` tells them apart.

    Returns:
        int32 and float32, on the CPU.

    Raises:
        SaeError: m is below 1.
    """
    if m < 1:
        raise SaeError(f"a feature needs at least 1 neighbour, not {m}")
    m = min(m, len(rows) - 1)
    unit = F.normalize(rows.float(), dim=1)
    ids, cosines = [], []
    size = max(1, _CHUNK_ELEMENTS // max(1, len(unit)))
    for begin in range(0, len(unit), size):
        part = unit[begin : begin + size] @ unit.T
        own = torch.arange(len(part), device=part.device)
        part[own, own + begin] = -torch.inf
        best = part.topk(m, dim=1)
        ids.append(best.indices.to("cpu", torch.int32))
        cosines.append(best.values.clamp(-1, 1).cpu())
    return Neighbours(torch.cat(ids), torch.cat(cosines))
