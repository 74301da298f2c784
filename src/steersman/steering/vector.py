"""A direction in the residual stream as an immutable value: compared, hashed and stored by content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Float
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema
from torch import Tensor

from steersman.errors import RecipeError

PREFIX = "vector:"


class Vector:
    """`d_model` finite float32 numbers, not all zero. Arithmetic gives new vectors; nothing changes in place."""

    def __init__(self, values: Float[Tensor, " d_model"] | Sequence[float]) -> None:
        """Copy `values` to float32 on the CPU.

        Raises:
            RecipeError: not real numbers, not one-dimensional, empty, NaN or infinite, or all zero.
        """
        try:
            given = torch.as_tensor(values).detach()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise RecipeError(f"a steering vector is a list of numbers, which this is not ({error})") from error
        if given.is_complex():
            raise RecipeError("a steering vector has real numbers, not complex ones")
        tensor = given.to("cpu", torch.float32).clone().contiguous()
        if tensor.ndim != 1 or tensor.numel() == 0:
            raise RecipeError(f"a steering vector has one dimension, this one has shape {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise RecipeError(f"a steering vector must be finite; {bad} of {tensor.numel()} values are NaN or infinite")
        if not tensor.any():
            raise RecipeError("a steering vector must not be all zero; leave the edit out instead")
        self._tensor = tensor

    @property
    def tensor(self) -> Float[Tensor, " d_model"]:
        """A copy of the values, float32 on the CPU."""
        return self._tensor.clone()

    def __len__(self) -> int:
        return self._tensor.numel()

    @cached_property
    def norm(self) -> float:
        """L2 norm."""
        return float(self._tensor.double().norm())

    def unit(self) -> Self:
        """The same direction with norm 1."""
        # In float64: float32 cannot hold the norm of its own largest numbers.
        return type(self)(self._tensor.double() / self.norm)

    def __add__(self, other: Vector) -> Vector:
        if len(self) != len(other):
            raise RecipeError(f"cannot add vectors of {len(self)} and {len(other)} dimensions")
        return Vector(self._tensor + other._tensor)

    def __mul__(self, factor: float) -> Vector:
        return Vector(self._tensor * factor)

    __rmul__ = __mul__

    def __neg__(self) -> Vector:
        return Vector(-self._tensor)

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the values' bytes (little endian)."""
        return hashlib.sha256(self._tensor.numpy().astype("<f4").tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Vector({len(self)} dims, norm {self.norm:.3g}, {self.sha256[:8]})"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """In JSON: a reference `vector:<sha256>` into the recipe's tensors, or inline a list of numbers."""
        return core_schema.with_info_plain_validator_function(
            cls._from_wire, serialization=core_schema.plain_serializer_function_ser_schema(lambda vector: vector.key)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "pattern": f"^{PREFIX}[0-9a-f]{{64}}$"},
                {"type": "array", "items": {"type": "number"}, "minItems": 1},
            ]
        }

    @property
    def key(self) -> str:
        """Its name in a recipe's JSON and tensor file."""
        return PREFIX + self.sha256

    @classmethod
    def _from_wire(cls, value: Any, info: ValidationInfo) -> Vector:
        if isinstance(value, Vector):
            return value
        if isinstance(value, str):
            tensors: Mapping[str, Tensor] = (info.context or {}).get("tensors", {})
            if value not in tensors:
                raise ValueError(f"{value[:40]!r} is not among the recipe's tensors")
            vector = cls(tensors[value])
            if vector.key != value:
                raise ValueError(f"the tensor stored as {value[:20]}… has other content; the file is damaged")
            return vector
        # Not what merely converts to a number, as text and true do.
        if isinstance(value, list) and all(type(number) in (int, float) for number in value):
            try:
                return cls([float(number) for number in value])
            except OverflowError as error:
                raise ValueError("a number is too large for a vector") from error
        raise ValueError("a vector is a list of numbers or a reference into the recipe's tensors")
