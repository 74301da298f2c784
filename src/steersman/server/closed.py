"""The base of request and answer bodies. Knows nothing of their fields."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

_MOST_MISTAKES = 500


class Closed(BaseModel):
    """A body whose unknown fields are refused, and whose mistakes are counted rather than told when there are very many.

    Each mistake that is told costs tens of microseconds of the event loop, and a megabyte has room for 100,000.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _few_mistakes(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            if error.error_count() <= _MOST_MISTAKES:
                raise
            raise ValueError(f"{error.error_count()} fields or entries are unknown or wrong; send fewer") from None
