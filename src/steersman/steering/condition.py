"""When an edit applies: conditions on the token read and on the residual stream, combined with and, or, not, since.

A condition is true or false at every single token of every request. It reads the residual stream of its layer before
the edits of that layer, so it may gate edits at the same layer or later ones.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from steersman.errors import RecipeError
from steersman.facts import check_choices, check_finite, fact
from steersman.steering.target import Latent, Target


@fact
class Above:
    """True where the residual stream's reading on a direction or latent exceeds `threshold`.

    For a direction the reading is the projection on its unit vector, in multiples of the mean residual norm, or the
    cosine; for a latent it is its activation.
    """

    layer: int
    target: Target
    threshold: float
    measure: Literal["projection", "cosine", "activation"] | None = None
    """By default `projection` for a direction; a latent knows `activation` alone."""
    kind: Literal["above"] = "above"

    def __post_init__(self) -> None:
        check_choices(self)
        if self.layer < 0:
            raise RecipeError(f"condition: layer {self.layer} does not exist; layers count from 0")
        check_finite("condition", threshold=self.threshold)
        if isinstance(self.target, Latent) != (self.resolved_measure == "activation"):
            raise RecipeError(f"condition: measure {self.measure!r} does not fit a {self.target.kind}")

    @property
    def resolved_measure(self) -> str:
        """The measure, with the default filled in."""
        return self.measure or ("activation" if isinstance(self.target, Latent) else "projection")


@fact
class TokenIs:
    """True where one of `token_ids` is read."""

    token_ids: tuple[int, ...]
    kind: Literal["token"] = "token"

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.token_ids:
            raise RecipeError("condition: 'token_ids' is empty; name at least one token")


@fact
class Not:
    """True where `item` is not."""

    item: Condition
    kind: Literal["not"] = "not"

    def __post_init__(self) -> None:
        check_choices(self)


@fact
class AllOf:
    """True where every item is."""

    items: tuple[Condition, ...]
    kind: Literal["all"] = "all"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_items(self.items)


@fact
class AnyOf:
    """True where at least one item is."""

    items: tuple[Condition, ...]
    kind: Literal["any"] = "any"

    def __post_init__(self) -> None:
        check_choices(self)
        _check_items(self.items)


@fact
class Since:
    """True from the first token of the sequence where `item` is, onwards: once seen, it stays."""

    item: Condition
    kind: Literal["since"] = "since"

    def __post_init__(self) -> None:
        check_choices(self)


Condition = Annotated[Above | TokenIs | Not | AllOf | AnyOf | Since, Field(discriminator="kind")]


def layers_read(condition: Condition) -> frozenset[int]:
    """The layers that must be read before the condition is known."""
    return frozenset(leaf.layer for leaf in leaves(condition))


def leaves(condition: Condition) -> list[Above]:
    """The parts of a condition that read the residual stream."""
    match condition:
        case Above():
            return [condition]
        case TokenIs():
            return []
        case Not() | Since():
            return leaves(condition.item)
        case AllOf() | AnyOf():
            return [leaf for item in condition.items for leaf in leaves(item)]


def _check_items(items: tuple[Condition, ...]) -> None:
    if not items:
        raise RecipeError("condition: 'items' is empty; name at least one condition")
