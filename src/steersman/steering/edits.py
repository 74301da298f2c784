"""The edits a recipe is made of: frozen facts, checked at birth. What they do to a tensor stands in `ops`.

All edits of one layer read the same residual stream, the block's own output, and their changes add up; so their order
never matters, and `a + b` equals `b + a`. A factor on a recipe multiplies the *change* an edit makes (for `rotate`, its
angle): 0 is the unsteered model for every kind.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from pydantic import Field

from steersman.errors import RecipeError
from steersman.facts import check_choices, check_finite, fact
from steersman.sae.config import SaeConfig, SaeRef
from steersman.steering.condition import Condition, layers_read
from steersman.steering.target import Latent, Target
from steersman.steering.vector import Vector
from steersman.steering.where import Constant, Schedule, Where

Unit = Literal["residual_norm", "raw"]
"""`residual_norm`: multiples of the mean residual norm at the edit's layer, the same on every model; `raw`: as it stands."""


@fact
class FeatureWeight:
    """A share of an SAE feature in a vector that was built from decoder rows."""

    id: int
    weight: float
    label: str | None = None

    def __post_init__(self) -> None:
        check_finite(f"feature {self.id}", weight=self.weight)


@fact
class EditBase:
    """What every edit has."""

    layer: int
    """Decoder block whose output is edited, counted from 0."""
    strength: float = 1.0
    """Factor on the change; negative turns it round. For `add`, the length of what is added, in `unit`."""
    where: Where = Where()
    """Which tokens."""
    schedule: Schedule = Constant()
    """Factor on the strength as the answer grows."""
    when: Condition | None = None
    """Only at tokens where this holds."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.layer < 0:
            raise RecipeError(f"layer {self.layer} does not exist; layers count from 0")
        check_finite("edit", strength=self.strength)
        late = [layer for layer in layers_read(self.when) if layer > self.layer] if self.when else []
        if late:
            raise RecipeError(
                f"an edit at layer {self.layer} cannot wait for a condition at layer {late[0]}, which comes later"
            )


@fact
class Add(EditBase):
    """Add a vector: `h + strength * vector` (raw), or `h + strength * mean_norm * unit(vector)` (residual_norm)."""

    vector: Vector
    unit: Unit = "residual_norm"
    features: tuple[FeatureWeight, ...] = ()
    """The SAE features the vector was summed from, when it was."""
    kind: Literal["add"] = "add"


@fact
class Clamp(EditBase):
    """Set the reading of a direction or latent to `value`; everything else, an SAE's reconstruction error too, stays."""

    target: Target
    value: float
    unit: Unit = "raw"
    """Of `value`; a latent's activation is always raw."""
    kind: Literal["clamp"] = "clamp"

    def __post_init__(self) -> None:
        EditBase.__post_init__(self)
        check_finite("clamp", value=self.value)
        if isinstance(self.target, Latent) and self.unit != "raw":
            raise RecipeError("clamp: the activation of a latent is raw; leave 'unit' out")


@fact
class Scale(EditBase):
    """Multiply the reading of a direction or latent by `factor`."""

    target: Target
    factor: float
    kind: Literal["scale"] = "scale"

    def __post_init__(self) -> None:
        EditBase.__post_init__(self)
        check_finite("scale", factor=self.factor)


@fact
class Ablate(EditBase):
    """Set the reading of a direction or latent to 0: project the direction out, or switch the latent off."""

    target: Target
    kind: Literal["ablate"] = "ablate"


@fact
class Rotate(EditBase):
    """Turn the residual stream by `degrees` towards `vector` (negative: away from it), its norm kept."""

    vector: Vector
    degrees: float
    kind: Literal["rotate"] = "rotate"

    def __post_init__(self) -> None:
        EditBase.__post_init__(self)
        if not math.isfinite(self.degrees) or abs(self.degrees) > 180:
            raise RecipeError(f"rotate: 'degrees' must lie between -180 and 180, not {self.degrees}")


@fact
class SaeEdit(EditBase):
    """What the edits that go through a whole SAE have: one score for every latent (arXiv:2506.12576)."""

    sae: SaeRef
    """The SAE to encode with; the recipe holds no more of it than this name."""
    scores: Vector
    """`d_sae` factors, one for the pre-activation of each latent; 1 leaves it alone, 0 switches it off."""
    keep_error: bool = True
    """Write only what the scores change (with scores of 1: nothing); else also replace the residual by its reconstruction,
    as in the paper."""

    def __post_init__(self) -> None:
        EditBase.__post_init__(self)
        if self.sae.layer != self.layer:
            raise RecipeError(
                f"an edit at layer {self.layer} cannot use the SAE {self.sae.id!r}, which reads layer {self.sae.layer}"
            )

    def check_fits(self, config: SaeConfig) -> None:
        """Refuse an SAE that has another number of latents.

        Raises:
            RecipeError: with both numbers.
        """
        if len(self.scores) != config.d_sae:
            raise RecipeError(
                f"an edit at layer {self.layer} has {len(self.scores)} scores, but the SAE {self.sae.id!r} has "
                f"{config.d_sae} latents; score each of them"
            )


@fact
class Weight(SaeEdit):
    """Multiply every latent's pre-activation by its score; then the SAE decides as ever which fire."""

    kind: Literal["weight"] = "weight"


@fact
class Swap(SaeEdit):
    """Let the weighted pre-activations choose which latents fire, and give those their original values."""

    kind: Literal["swap"] = "swap"


Edit = Annotated[Add | Clamp | Scale | Ablate | Rotate | Weight | Swap, Field(discriminator="kind")]
KINDS: dict[str, type[Edit]] = {
    "add": Add,
    "clamp": Clamp,
    "scale": Scale,
    "ablate": Ablate,
    "rotate": Rotate,
    "weight": Weight,
    "swap": Swap,
}


def width(edit: Edit) -> int | None:
    """`d_model` that the edit was made for; None where only its SAE knows."""
    match edit:
        case Add() | Rotate():
            return len(edit.vector)
        case Clamp() | Scale() | Ablate():
            return edit.target.width
        case Weight() | Swap():
            return None


def scaled(edit: Edit, factor: float) -> Edit:
    """The edit with its strength multiplied."""
    return dataclasses.replace(edit, strength=edit.strength * factor)
