"""Each op equals its plain formula, changes nothing at gain 0, and keeps the laws that its sentence states."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import WIDTH, directions, few, targets
from torch import Tensor

from steersman.steering import ops
from steersman.steering.target import Direction, Target

ROWS, SEQ = 3, 5
_strengths = st.floats(-2.0, 2.0)
_three_targets = st.lists(targets, min_size=ROWS, max_size=ROWS)
_three_directions = st.lists(directions, min_size=ROWS, max_size=ROWS)


def _hidden(seed: int = 0, size: float = 3.0) -> Tensor:
    return torch.randn(ROWS, SEQ, WIDTH, generator=torch.Generator().manual_seed(seed)) * size


def _gain(value: float = 1.0) -> Tensor:
    return torch.full((ROWS, SEQ), value)


def _affine(hidden: Tensor, of: list[Target], slope: float, offset: float, gain: Tensor) -> Tensor:
    rows, biases, thresholds = zip(*(target.encoder() for target in of), strict=True)
    encoders = torch.stack(rows), torch.tensor(biases), torch.tensor(thresholds)
    decoder = torch.stack([target.decoder() for target in of])
    return ops.affine(hidden, encoders, decoder, torch.full((ROWS,), slope), torch.full((ROWS,), offset), gain)


def _units(of: list[Direction]) -> Tensor:
    return torch.stack([target.vector.unit().tensor for target in of])


@few
@given(_three_directions)
def test_add_adds_its_vector_times_the_gain(of: list[Direction]) -> None:
    vectors = torch.stack([target.vector.tensor for target in of])
    gain = torch.randn(ROWS, SEQ, generator=torch.Generator().manual_seed(1))
    change = ops.add(vectors, gain)
    for row in range(ROWS):
        for token in range(SEQ):
            assert torch.equal(change[row, token], gain[row, token] * vectors[row])


@few
@given(_three_targets, _strengths, _strengths)
def test_affine_equals_the_plain_formula(of: list[Target], slope: float, offset: float) -> None:
    hidden = _hidden()
    gain = torch.rand(ROWS, SEQ, generator=torch.Generator().manual_seed(2))
    change = _affine(hidden, of, slope, offset, gain)
    for row, target in enumerate(of):
        for token in range(SEQ):
            moved = float(gain[row, token]) * (slope * float(target.read(hidden[row, token])) + offset)
            torch.testing.assert_close(change[row, token], moved * target.decoder(), rtol=1e-4, atol=1e-4)


@few
@given(_three_directions, st.floats(-50.0, 50.0))
def test_clamp_sets_the_reading_and_leaves_the_rest(of: list[Direction], value: float) -> None:
    hidden = _hidden()
    clamped = hidden + _affine(hidden, of, -1.0, value, _gain())
    units = _units(of)[:, None]
    torch.testing.assert_close((clamped * units).sum(-1), _gain(value), rtol=1e-4, atol=1e-4)
    rest = [stream - (stream * units).sum(-1, keepdim=True) * units for stream in (hidden, clamped)]
    torch.testing.assert_close(rest[0], rest[1], rtol=1e-4, atol=1e-4)


@few
@given(_three_directions)
def test_ablating_twice_is_ablating_once(of: list[Direction]) -> None:
    hidden = _hidden()
    once = hidden + _affine(hidden, of, -1.0, 0.0, _gain())
    twice = once + _affine(once, of, -1.0, 0.0, _gain())
    torch.testing.assert_close((once * _units(of)[:, None]).sum(-1), _gain(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-5)


@few
@given(_three_targets)
def test_scale_by_one_changes_no_bit(of: list[Target]) -> None:
    hidden = _hidden()
    assert torch.equal(hidden + _affine(hidden, of, 0.0, 0.0, _gain()), hidden)


@few
@given(_three_directions, _strengths)
def test_scaling_multiplies_the_reading(of: list[Direction], factor: float) -> None:
    hidden = _hidden()
    units = _units(of)[:, None]
    scaled = hidden + _affine(hidden, of, factor - 1.0, 0.0, _gain())
    torch.testing.assert_close((scaled * units).sum(-1), factor * (hidden * units).sum(-1), rtol=1e-3, atol=1e-4)


def test_a_latent_that_is_off_is_neither_scaled_nor_ablated_but_can_be_switched_on() -> None:
    from steersman.steering.target import Latent
    from steersman.steering.vector import Vector

    row, out = torch.zeros(WIDTH), torch.zeros(WIDTH)
    row[0], out[1] = 1.0, 2.0
    latent = Latent(id=0, encoder_row=Vector(row), encoder_bias=-1.0, decoder_row=Vector(out), threshold=0.5)
    hidden = _hidden()
    hidden[..., 0] = 1.5  # 1.5 - 1.0 is the threshold itself: off.
    of: list[Target] = [latent] * ROWS
    assert not _affine(hidden, of, 3.0, 0.0, _gain()).any()
    assert not _affine(hidden, of, -1.0, 0.0, _gain()).any()
    switched = _affine(hidden, of, -1.0, 7.0, _gain())
    assert torch.equal(switched, (7.0 * out).expand_as(hidden))


# --- rotate


def _turned(hidden: Tensor, toward: Tensor, degrees: float) -> Tensor:
    """One token turned, in float64, by the definition."""
    h, unit = hidden.double(), toward.double()
    norm = h.norm()
    along = float(h @ unit)
    across = h - along * unit
    angle = math.acos(max(-1.0, min(1.0, along / float(norm))))
    angle = min(max(angle - math.radians(degrees), 0.0), math.pi)
    return (norm * (math.cos(angle) * unit + math.sin(angle) * across / across.norm())).float()


def _rotated(hidden: Tensor, toward: Tensor, degrees: float) -> Tensor:
    return hidden + ops.rotate(hidden, toward, torch.full((ROWS,), degrees), _gain())


@few
@given(_three_directions, st.floats(-180, 180))
def test_rotate_equals_the_definition_and_keeps_the_norm(of: list[Direction], degrees: float) -> None:
    hidden, units = _hidden(), _units(of)
    rotated = _rotated(hidden, units, degrees)
    torch.testing.assert_close(rotated.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-5, atol=1e-5)
    for row in range(ROWS):
        for token in range(SEQ):
            expected = _turned(hidden[row, token], units[row], degrees)
            torch.testing.assert_close(rotated[row, token], expected, rtol=1e-3, atol=1e-3)


@few
@given(_three_directions)
def test_rotating_by_nothing_is_nothing(of: list[Direction]) -> None:
    hidden = _hidden()
    torch.testing.assert_close(_rotated(hidden, _units(of), 0.0), hidden, rtol=1e-5, atol=1e-5)


def test_a_right_angle_from_an_orthogonal_stream_lands_on_the_vector() -> None:
    toward = torch.eye(WIDTH)[:ROWS]
    hidden = _hidden()
    hidden[..., :ROWS] = 0.0
    norm = hidden.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(_rotated(hidden, toward, 90.0), norm * toward[:, None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(_rotated(hidden, toward, -90.0), -norm * toward[:, None], rtol=1e-5, atol=1e-5)


@few
@given(_three_directions)
def test_the_turn_stops_at_the_vector_or_its_opposite(of: list[Direction]) -> None:
    hidden, units = _hidden(), _units(of)
    norm = hidden.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(_rotated(hidden, units, 180.0), norm * units[:, None], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(_rotated(hidden, units, -180.0), -norm * units[:, None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("degrees", [-180.0, -90.0, -30.0, 30.0, 90.0, 180.0])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_stream_along_the_vector_itself_keeps_its_norm(sign: float, degrees: float, size: float) -> None:
    toward = torch.eye(WIDTH)[:ROWS]
    hidden = (sign * size * toward)[:, None].expand(ROWS, SEQ, WIDTH).clone()
    rotated = _rotated(hidden, toward, degrees)
    torch.testing.assert_close(rotated.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-5, atol=0)


def test_a_stream_of_zeros_stays_zero() -> None:
    assert not _rotated(torch.zeros(ROWS, SEQ, WIDTH), torch.eye(WIDTH)[:ROWS], 45.0).any()


# --- all of them


def _changes(hidden: Tensor, of: list[Direction], gain: Tensor) -> dict[str, Tensor]:
    units = _units(of)
    return {
        "add": ops.add(units, gain),
        "affine": _affine(hidden, list(of), 0.7, 2.0, gain),
        "rotate": ops.rotate(hidden, units, torch.full((ROWS,), 33.0), gain),
    }


@few
@given(_three_directions)
def test_gain_zero_gives_exactly_zero(of: list[Direction]) -> None:
    hidden = _hidden()
    hidden[0, 0] *= 1e18
    gain = _gain()
    gain[0], gain[2, 3] = 0.0, 0.0
    for change in _changes(hidden, of, gain).values():
        assert not change[0].any()
        assert not change[2, 3].any()
        assert change[1].any()


def test_gain_zero_gives_exactly_zero_even_where_the_stream_overflowed() -> None:
    from steersman.steering.vector import Vector

    of = [Direction(vector=Vector([1.0] * WIDTH))] * ROWS
    hidden = _hidden()
    hidden[0, 0, 0] = math.inf
    for name, change in _changes(hidden, of, _gain(0.0)).items():
        assert not change.any(), name


@few
@given(_three_directions)
def test_a_row_never_touches_another(of: list[Direction]) -> None:
    hidden, gain = _hidden(), torch.rand(ROWS, SEQ, generator=torch.Generator().manual_seed(3))
    before = _changes(hidden, of, gain)
    other = hidden.clone()
    other[1] = math.nan
    for name, change in _changes(other, of, gain).items():
        assert torch.equal(change[[0, 2]], before[name][[0, 2]])


@pytest.mark.parametrize("width", [8, 31, 576, 2304])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_row_or_token_alone_gives_the_same_bits_as_among_others(rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    hidden = torch.randn(rows, 9, width, generator=generator) * 30
    unit = torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=-1)
    degrees, gain = torch.linspace(-90, 90, rows), torch.rand(rows, 9, generator=generator)
    bias, threshold = torch.randn(rows, generator=generator), torch.zeros(rows)
    slope, offset = torch.randn(rows, generator=generator), torch.randn(rows, generator=generator)

    def run(r: slice, t: slice) -> list[Tensor]:
        encoders = unit[r], bias[r], threshold[r]
        return [
            ops.add(unit[r], gain[r, t]),
            ops.affine(hidden[r, t], encoders, unit[r], slope[r], offset[r], gain[r, t]),
            ops.rotate(hidden[r, t], unit[r], degrees[r], gain[r, t]),
        ]

    together = run(slice(None), slice(None))
    for row in range(rows):
        for token in range(9):
            alone = run(slice(row, row + 1), slice(token, token + 1))
            for one, many in zip(alone, together, strict=True):
                assert torch.equal(one[0, 0], many[row, token])
