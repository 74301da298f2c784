"""Latents that can fire, found by bounds from bfloat16: never one too few, and the same bits whatever is read beside."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from tests.sae.toys import ARCHITECTURES, D_MODEL, D_SAE, NORMALISATIONS, residuals, toy_sae
from torch import Tensor

from steersman.sae import contenders as module
from steersman.sae.config import Architecture, Normalise
from steersman.sae.contenders import contenders, fired
from steersman.sae.model import SparseAutoencoder
from steersman.sae.screen import Screen

every_toy = pytest.mark.parametrize(
    ("architecture", "normalise"), list(itertools.product(ARCHITECTURES, NORMALISATIONS))
)


def screened(
    architecture: Architecture, normalise: Normalise = "none", *, seed: int = 0
) -> tuple[SparseAutoencoder, SparseAutoencoder]:
    """The same SAE twice: one that is screened, and one that never is."""
    plain, other = (toy_sae(architecture, normalise, seed=seed) for _ in range(2))
    other.__dict__["screen"] = Screen(other.encoder, other.b_enc)
    assert plain.screen is None  # Too small for it to pay.
    return plain, other


def dense(sae: SparseAutoencoder, h: Tensor, scores: Tensor | None = None) -> Tensor:
    """What fires, as a table."""
    weights = torch.ones(len(h), D_SAE) if scores is None else scores
    found = contenders(sae, h, weights, only_shrink=bool((weights.abs() <= 1).all()) and bool((weights >= 0).all()))
    table = torch.zeros(len(h), D_SAE)
    values = found.pre if scores is None else found.pre * scores[found.tokens, found.latents]
    table[found.tokens, found.latents] = fired(sae, found, values)
    return table


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_every_pre_activation_lies_between_its_bounds(half: bool, size: float) -> None:
    made = torch.Generator().manual_seed(0)
    encoder, bias = torch.randn(300, 70, generator=made), torch.randn(300, generator=made)
    x = size * torch.randn(50, 70, generator=made)
    if half:
        encoder, x = encoder.bfloat16().float(), x.bfloat16().float()
    bounds = Screen(encoder, bias).bounds(x)
    low, high = bounds.low, bounds.high
    exact = x.double() @ encoder.double().T + bias.double()
    assert (low <= exact).all()
    assert (exact <= high).all()
    # And they say something: they are a small part of what is read apart.
    assert float((high - low).mean() / exact.abs().mean()) < 0.2


def test_the_bounds_hold_where_every_rounding_goes_the_same_way() -> None:
    # Each number of the residual lies half-way between two of bfloat16, and so does their sum; all are rounded down.
    x = torch.full((4, 257), 1 + 2**-8)
    assert torch.equal(x.bfloat16().float(), torch.ones(4, 257))
    bounds = Screen(torch.ones(8, 257), torch.zeros(8)).bounds(x)
    assert (bounds.middle == 256).all()
    assert (bounds.high >= 257 * (1 + 2**-8)).all()


@every_toy
@pytest.mark.parametrize("whole_above", [1, 10_000])
@pytest.mark.parametrize("scores_of", [torch.randn, torch.rand], ids=["any scores", "scores of a topic"])
def test_what_fires_is_what_the_sae_says(
    architecture: Architecture,
    normalise: Normalise,
    scores_of: Callable[..., Tensor],
    whole_above: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SPARSE", 1 / whole_above)
    made = torch.Generator().manual_seed(3)
    h, scores = residuals(60), scores_of(60, D_SAE, generator=made)
    for sae in screened(architecture, normalise):
        torch.testing.assert_close(dense(sae, h), sae.encode(h), rtol=1e-4, atol=1e-5)
        weighted = sae.fire(sae.pre_activations(h) * scores)
        torch.testing.assert_close(dense(sae, h, scores), weighted, rtol=1e-4, atol=1e-5)


@every_toy
@pytest.mark.parametrize("threads", [1, 2])
def test_a_screened_token_is_the_same_bit_for_bit_beside_others(
    architecture: Architecture, normalise: Normalise, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of the tokens are read whole, the others latent by latent.
    monkeypatch.setattr(module, "_SPARSE", 2.2)
    monkeypatch.setattr(module, "_GATHER_ELEMENTS", 7 * D_MODEL)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, sae = screened(architecture, normalise)
        h = residuals(33)
        together = dense(sae, h)
        for count in (1, 2, 3, 5, 8, 13):
            for start in (0, 3, 33 - count):
                assert torch.equal(dense(sae, h[start : start + count]), together[start : start + count])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_residual_that_is_not_finite_stays_that_under_the_screen(architecture: Architecture) -> None:
    _, sae = screened(architecture)
    h = residuals(6)
    clean = dense(sae, h)
    h[2, 1] = torch.nan
    dirty = dense(sae, h)
    assert dirty[2].isnan().any()
    rest = [0, 1, 3, 4, 5]
    assert torch.equal(dirty[rest], clean[rest])


def test_nothing_to_read_gives_nothing() -> None:
    for sae in screened("jumprelu"):
        found = contenders(sae, residuals(0), torch.ones(0, D_SAE))
        assert (len(found.tokens), len(found.pre), len(found.starts)) == (0, 0, 0)
