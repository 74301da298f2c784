"""What an edit or condition reads from the residual stream and writes back to: a direction, or one SAE latent.

Both are self-contained: a recipe on latents carries their encoder and decoder rows, so that it runs without the SAE.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from steersman.errors import RecipeError
from steersman.facts import check_choices, fact
from steersman.steering.vector import Vector


@fact
class Direction:
    """A direction; only its orientation counts. Reading it gives the projection on the unit vector."""

    vector: Vector
    kind: Literal["direction"] = "direction"

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def width(self) -> int:
        """`d_model` of the model it belongs to."""
        return len(self.vector)

    def encoder(self) -> tuple[Float[Tensor, " d_model"], float, float]:
        """Row, bias and threshold such that the reading is `row @ h + bias`, 0 where not above the threshold."""
        return self.vector.unit().tensor, 0.0, -math.inf

    def decoder(self) -> Float[Tensor, " d_model"]:
        """What one unit of the reading adds to the residual stream."""
        return self.vector.unit().tensor

    def read(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """The reading at each token; `hidden` is float32."""
        return read(hidden, *self.encoder())


@fact
class Latent:
    """One SAE latent, with input normalisation and decoder bias folded into `encoder_bias`.

    Its activation is `encoder_row @ h + encoder_bias` where that exceeds `threshold` (0 for ReLU; JumpReLU's or BatchTopK's
    exported one), else 0.
    """

    id: int
    """Index of the latent in its SAE."""
    encoder_row: Vector
    encoder_bias: float
    decoder_row: Vector
    threshold: float = 0.0
    label: str | None = None
    """What the latent stands for; for people."""
    kind: Literal["latent"] = "latent"

    def __post_init__(self) -> None:
        check_choices(self)
        if self.id < 0:
            raise RecipeError(f"latent: id {self.id} is negative")
        if len(self.encoder_row) != len(self.decoder_row):
            raise RecipeError(
                f"latent {self.id}: encoder row of {len(self.encoder_row)} dimensions, decoder row of {len(self.decoder_row)}"
            )
        if not math.isfinite(self.encoder_bias) or not math.isfinite(self.threshold) or self.threshold < 0:
            raise RecipeError(f"latent {self.id}: bias and threshold must be finite, the threshold not negative")

    @property
    def width(self) -> int:
        """`d_model` of the model it belongs to."""
        return len(self.encoder_row)

    def encoder(self) -> tuple[Float[Tensor, " d_model"], float, float]:
        """Row, bias and threshold such that the reading is `row @ h + bias`, 0 where not above the threshold."""
        return self.encoder_row.tensor, self.encoder_bias, self.threshold

    def decoder(self) -> Float[Tensor, " d_model"]:
        """What one unit of the activation adds to the residual stream."""
        return self.decoder_row.tensor

    def read(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """The activation at each token; `hidden` is float32."""
        return read(hidden, *self.encoder())


Target = Annotated[Direction | Latent, Field(discriminator="kind")]


def read(
    hidden: Float[Tensor, "*batch d_model"],
    row: Float[Tensor, "*rows d_model"],
    bias: float | Float[Tensor, "*rows"],
    threshold: float | Float[Tensor, "*rows"],
) -> Float[Tensor, "*batch"]:
    """Thresholded reading of `hidden` (float32). A product and a sum, not a matrix product: rows stay independent."""
    value = (hidden * row.to(hidden.device)).sum(-1) + bias
    return torch.where(value > threshold, value, torch.zeros_like(value))
