"""A vector is a value: equal by content, never changed, and refused where it could only do harm."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tests.recipes import WIDTH, few, vectors

from steersman.errors import RecipeError
from steersman.steering.vector import PREFIX, Vector

_numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20).filter(any)
_WIRE: TypeAdapter[Vector] = TypeAdapter(Vector)


@few
@given(_numbers)
def test_a_vector_is_equal_to_its_like_and_hashes_as_one(numbers: list[float]) -> None:
    once, again = Vector(numbers), Vector(torch.tensor(numbers, dtype=torch.float64))
    assert once == again
    assert hash(once) == hash(again)
    assert len({once, again}) == 1
    assert len(once) == len(numbers)


@few
@given(_numbers)
def test_its_hash_is_that_of_its_little_endian_floats(numbers: list[float]) -> None:
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    assert Vector(numbers).sha256 == hashlib.sha256(data).hexdigest()
    assert Vector(numbers).key == PREFIX + hashlib.sha256(data).hexdigest()


def test_another_content_or_length_is_another_vector() -> None:
    vector = Vector([1.0, 2.0])
    assert vector != Vector([1.0, 2.0000002])
    assert vector != Vector([1.0, 2.0, 0.0])
    assert vector != [1.0, 2.0]


def test_it_keeps_its_own_copy() -> None:
    source = torch.tensor([1.0, 2.0])
    vector = Vector(source)
    before = vector.sha256
    source += 1
    vector.tensor.zero_()
    assert vector.tensor.tolist() == [1.0, 2.0]
    assert Vector(vector.tensor).sha256 == before


@few
@given(vectors)
def test_arithmetic_is_that_of_its_numbers(vector: Vector) -> None:
    values = vector.tensor
    assert torch.equal((vector + vector).tensor, values + values)
    assert torch.equal((vector * 0.5).tensor, values * 0.5)
    assert 0.5 * vector == vector * 0.5
    opposite = -vector
    assert torch.equal(opposite.tensor, -values)
    assert -opposite == vector
    assert vector.norm == pytest.approx(math.sqrt(math.fsum(x * x for x in values.tolist())), rel=1e-6)


@few
@given(vectors)
def test_unit_has_norm_one_and_the_same_direction(vector: Vector) -> None:
    assert vector.unit().norm == pytest.approx(1.0, abs=1e-6)
    assert float(vector.unit().tensor.double() @ vector.tensor.double()) == pytest.approx(vector.norm, rel=1e-6)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 3e38])
def test_unit_of_a_very_short_or_long_vector(size: float) -> None:
    assert Vector([size, -size]).unit().tensor.tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], rel=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.0, 0.0],
        [-0.0],
        [math.nan, 1.0],
        [math.inf, 1.0],
        [1.0, -math.inf],
        [[1.0], [2.0]],
        torch.tensor(3.0),
        torch.ones(2, 2),
        torch.tensor([1e39, 1.0], dtype=torch.float64),
        torch.tensor([1e-60], dtype=torch.float64),
        [[1.0, 2.0], [3.0]],
    ],
    ids=repr,
)
def test_what_is_no_direction_is_refused(values: Any) -> None:
    with pytest.raises(RecipeError):
        Vector(values)


def test_refusals_of_arithmetic() -> None:
    with pytest.raises(RecipeError, match="2 and 3"):
        Vector([1.0, 2.0]) + Vector([1.0, 2.0, 3.0])
    with pytest.raises(RecipeError):
        Vector([1.0]) + Vector([-1.0])
    with pytest.raises(RecipeError):
        Vector([1.0]) * 0.0
    with pytest.raises(RecipeError):
        Vector([1.0]) * math.nan


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_any_number_format_becomes_float32(dtype: torch.dtype) -> None:
    vector = Vector(torch.tensor([1, -2, 3], dtype=dtype, requires_grad=dtype.is_floating_point))
    assert vector.tensor.dtype == torch.float32
    assert not vector.tensor.requires_grad
    assert vector == Vector([1.0, -2.0, 3.0])


def test_a_view_of_a_larger_tensor_is_hashed_as_its_own_numbers() -> None:
    assert Vector(torch.arange(6.0)[::2]) == Vector([0.0, 2.0, 4.0])
    assert Vector(torch.arange(6.0)[::2]).tensor.untyped_storage().nbytes() == 12


@few
@given(vectors)
def test_wire_names_it_by_content_and_reads_it_back(vector: Vector) -> None:
    assert _WIRE.dump_python(vector, mode="json") == vector.key
    assert _WIRE.validate_python(vector.key, context={"tensors": {vector.key: vector.tensor}}) == vector
    assert _WIRE.validate_python(vector.tensor.tolist()) == vector
    assert _WIRE.validate_python(vector) is vector


@pytest.mark.parametrize(
    "value",
    [
        PREFIX + "0" * 64,
        "another text",
        [],
        [0.0],
        [math.nan],
        [1e39, 1.0],
        [10**400],
        ["1.5", 2.0],
        [True, 2.0],
        [None, 1.0],
        [{}],
        [[1.0]],
        3.0,
        None,
        {},
    ],
    ids=repr,
)
def test_wire_refuses_what_is_no_vector(value: Any) -> None:
    with pytest.raises(ValidationError):
        _WIRE.validate_python(value, context={"tensors": {}})


def test_wire_refuses_a_tensor_under_a_foreign_name() -> None:
    one, two = Vector([1.0] * WIDTH), Vector([2.0] * WIDTH)
    with pytest.raises(ValidationError, match="damaged"):
        _WIRE.validate_python(one.key, context={"tensors": {one.key: two.tensor}})
