"""Which tokens an edit touches, and how strongly as the answer grows. Pure functions of positions and token ids.

Positions count the tokens of the sequence from 0, prompt first, whatever the padding, the batch or the cache. A token's
position is where it is *read*: editing the last prompt token changes the first token that is written.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from steersman.errors import RecipeError
from steersman.facts import check_choices, check_finite, fact


@fact
class Where:
    """The tokens an edit touches: all the conditions given must hold."""

    scope: Literal["all", "prompt", "generated"] = "all"
    """`prompt`: tokens of the prompt; `generated`: tokens that the model wrote; `all`: both."""
    start: int = 0
    """Leave out this many tokens at the beginning of the scope."""
    stop: int | None = None
    """Leave out tokens of the scope from this one on."""
    positions: tuple[int, ...] | None = None
    """Only these positions; negative ones count back from the end of the prompt (-1 is its last token)."""
    token_ids: tuple[int, ...] | None = None
    """Only where one of these tokens is read."""
    first_token: bool = False
    """Whether position 0 may be edited; its activations are an attention sink, so by default it is not."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise RecipeError(
                f"where: the window start={self.start}, stop={self.stop} is empty; 0 <= start < stop is needed"
            )
        if self.positions is not None and not self.positions:
            raise RecipeError("where: 'positions' is empty; leave it out to edit all positions")
        if self.token_ids is not None and not self.token_ids:
            raise RecipeError("where: 'token_ids' is empty; leave it out to edit all tokens")

    def mask(
        self,
        positions: Int[Tensor, "rows seq"],
        prompt_lengths: Int[Tensor, "rows 1"],
        token_ids: Int[Tensor, "rows seq"],
    ) -> Bool[Tensor, "rows seq"]:
        """True for the tokens to edit."""
        index = positions
        mask = torch.ones_like(positions, dtype=torch.bool) if self.first_token else positions > 0
        if self.scope == "prompt":
            mask = mask & (positions < prompt_lengths)
        elif self.scope == "generated":
            mask = mask & (positions >= prompt_lengths)
            index = positions - prompt_lengths
        if self.start:
            mask = mask & (index >= self.start)
        if self.stop is not None:
            mask = mask & (index < self.stop)
        if self.positions is not None:
            named = torch.tensor(self.positions, device=positions.device)
            absolute = torch.where(named < 0, named + prompt_lengths, named)  # (rows, named)
            mask = mask & (positions[:, :, None] == absolute[:, None, :]).any(-1)
        if self.token_ids is not None:
            mask = mask & torch.isin(token_ids, torch.tensor(self.token_ids, device=token_ids.device))
        return mask


@fact
class Constant:
    """Full strength at every token."""

    kind: Literal["constant"] = "constant"

    def __post_init__(self) -> None:
        check_choices(self)

    def gains(self, index: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq"]:
        """Factor on the strength at each generated token (0 is the first; the prompt counts as 0)."""
        return torch.ones_like(index, dtype=torch.float32)


@fact
class Ramp:
    """From `start` to `end` in equal steps over `tokens` generated tokens, then `end`."""

    tokens: int
    start: float = 0.0
    end: float = 1.0
    kind: Literal["ramp"] = "ramp"

    def __post_init__(self) -> None:
        check_choices(self)
        if self.tokens < 1:
            raise RecipeError(f"ramp: 'tokens' must be at least 1, not {self.tokens}")
        check_finite("ramp", start=self.start, end=self.end)

    def gains(self, index: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq"]:
        """Factor on the strength at each generated token (0 is the first; the prompt counts as 0)."""
        share = (index.float() / self.tokens).clamp(0.0, 1.0)
        return self.start + (self.end - self.start) * share


@fact
class Decay:
    """Halved every `half_life_tokens` generated tokens, towards `floor`."""

    half_life_tokens: float
    floor: float = 0.0
    kind: Literal["decay"] = "decay"

    def __post_init__(self) -> None:
        check_choices(self)
        check_finite("decay", half_life_tokens=self.half_life_tokens, floor=self.floor)
        if self.half_life_tokens <= 0:
            raise RecipeError(f"decay: 'half_life_tokens' must be above 0, not {self.half_life_tokens:g}")

    def gains(self, index: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq"]:
        """Factor on the strength at each generated token (0 is the first; the prompt counts as 0)."""
        # In float64: the float32 kernel rounds differently at the end of a tensor, so a row would depend on its neighbours.
        share = torch.exp2(-index.clamp(min=0).double() / self.half_life_tokens)
        return (self.floor + (1.0 - self.floor) * share).float()


Schedule = Annotated[Constant | Ramp | Decay, Field(discriminator="kind")]
