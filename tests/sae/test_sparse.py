"""What fires is what a full sort would choose; sums and slopes equal the dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steersman.sae.sparse import (
    Fired,
    by_latent,
    decoded,
    decoded_with_slopes,
    summed_by_latent,
    top_of_batch,
    top_per_token,
)

_TOKENS, _LATENTS, _D = 37, 50, 8


def _pre(seed: int = 0) -> Tensor:
    return torch.randn(_TOKENS, _LATENTS, generator=torch.Generator().manual_seed(seed))


def _dense(fired: Fired) -> Tensor:
    return torch.zeros(_TOKENS, _LATENTS).index_put_((fired.tokens, fired.latents), fired.values, accumulate=True)


def test_top_per_token_keeps_the_k_largest_of_each_row() -> None:
    pre = _pre()
    fired = top_per_token(pre, 5)
    expected = torch.where(pre >= pre.sort(descending=True).values[:, 4:5], pre, 0).relu()
    torch.testing.assert_close(_dense(fired), expected)
    assert fired.offsets.tolist() == list(range(0, 5 * _TOKENS, 5))


@pytest.mark.parametrize("guess", [0.0, 0.5, 1.2, 99.0, -1.0])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_top_of_batch_keeps_the_largest_of_all_wherever_the_search_begins(guess: float, k: int) -> None:
    pre = _pre(k)
    fired, smallest = top_of_batch(pre, k, guess)
    floor = pre.flatten().sort(descending=True).values[k * _TOKENS - 1]
    torch.testing.assert_close(_dense(fired), torch.where(pre >= floor, pre, 0))
    assert smallest == pytest.approx(float(floor))
    rows = [
        fired.tokens[start:stop].unique() for start, stop in zip(fired.offsets, [*fired.offsets[1:], None], strict=True)
    ]
    assert all(row.tolist() in ([], [number]) for number, row in enumerate(rows))


def test_what_is_not_positive_never_fires() -> None:
    pre = _pre() - 2.0
    fired, smallest = top_of_batch(pre, 20)
    torch.testing.assert_close(_dense(fired), pre.relu())
    assert smallest > 0
    nothing, smallest = top_of_batch(-pre.abs(), 3)
    assert (len(nothing.values), smallest) == (0, 0.0)
    assert not _dense(top_per_token(-pre.abs(), 3)).any()
    assert not decoded(nothing, torch.randn(_LATENTS, _D)).any()


@pytest.mark.parametrize("choose", [lambda pre: top_per_token(pre, 4), lambda pre: top_of_batch(pre, 4)[0]])
def test_sums_and_slopes_equal_the_dense_ones(choose: object) -> None:
    random = torch.Generator().manual_seed(1)
    decoder, rows, slope = (torch.randn(n, _D, generator=random) for n in (_LATENTS, _TOKENS, _TOKENS))
    fired = choose(_pre())  # type: ignore[operator]
    acts = _dense(fired).requires_grad_()
    torch.testing.assert_close(decoded(fired, decoder), (acts @ decoder).detach())
    out, values = decoded_with_slopes(fired, decoder)
    (acts @ decoder).backward(slope)
    assert acts.grad is not None
    torch.testing.assert_close(torch.autograd.grad(out, values, slope)[0], acts.grad[fired.tokens, fired.latents])
    places = by_latent(fired, _LATENTS)
    torch.testing.assert_close(summed_by_latent(fired, places, fired.values, rows), acts.detach().T @ rows)
