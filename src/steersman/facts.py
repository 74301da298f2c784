"""`@fact`: a frozen, slotted, keyword-only dataclass whose unknown fields are errors wherever it is read from outside.

The checks below are for the facts that recipes are made of, to be called in their `__post_init__`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict

from steersman.errors import RecipeError, SteersmanError, did_you_mean

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def fact(cls: type[T]) -> type[T]:
    """Make `cls` a fact. Values are checked in its `__post_init__`; JSON with unknown fields is refused by pydantic."""
    made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
    made.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return made


def check_choices(made: object, error: type[SteersmanError] = RecipeError) -> None:
    """Refuse values that the `Literal` fields of a fact do not name. Python itself would take any.

    Raises:
        error: with the values there are, and the one that was probably meant.
    """
    cls: type = type(made)
    for name, choices in _choices(cls).items():
        value = getattr(made, name)
        if value not in choices:
            known = [choice for choice in choices if choice is not None]
            raise error(
                f"{cls.__name__.lower()}: '{name}' must be one of {', '.join(map(repr, known))}, not {value!r}"
                + did_you_mean(str(value).lower(), known)
            )


def check_finite(what: str, **values: float) -> None:
    """Refuse NaN, infinity and whole numbers that no float can hold.

    Raises:
        RecipeError: with `what` and the field's name.
    """
    for name, value in values.items():
        if not abs(value) <= sys.float_info.max:  # NaN is not either.
            raise RecipeError(f"{what}: '{name}' must be a finite number, not {value}")


@cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """What each `Literal` field of a fact may be, None included where it is optional."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        parts = (hint,) if get_origin(hint) is Literal else get_args(hint)
        if any(get_origin(part) is Literal for part in parts):
            found[name] = tuple(value for part in parts for value in ((None,) if part is NoneType else get_args(part)))
    return found
