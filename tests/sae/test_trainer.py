"""Gradients are those of the loss as written; training finds a dictionary that is known to be there."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from steersman.errors import DataError
from steersman.sae import trainer as module
from steersman.sae.trainer import Trainer, TrainSettings

_D, _N = 16, 48
_SMALL = TrainSettings(n_latents=_N, k=3, tokens=6400, batch_tokens=64, dead_tokens=200, learning_rate=0.01)


def _batch(seed: int, n: int = 64) -> Tensor:
    """Sparse sums of 32 fixed directions around a fixed centre, as residuals are thought to be."""
    fixed = torch.Generator().manual_seed(99)
    directions = torch.nn.functional.normalize(torch.randn(32, _D, generator=fixed), dim=1)
    centre = torch.randn(_D, generator=fixed)
    random = torch.Generator().manual_seed(seed)
    acts = torch.rand(n, 32, generator=random) * (torch.rand(n, 32, generator=random) < 2 / 32)
    return (10 * acts @ directions + centre).half()


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize("n_dead", [0, 7])
def test_gradients_are_those_of_the_loss(
    architecture: Literal["topk", "batchtopk"], n_dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "choose_dtype", lambda name, device: torch.float32)
    trainer = Trainer(dataclasses.replace(_SMALL, architecture=architecture, aux_k=4), _D, scale=0.5)
    trainer.centre(_batch(0))
    trainer.b_enc.copy_(torch.randn(_N) * 0.1)
    dead = torch.randperm(_N)[:n_dead]
    trainer.b_enc[dead] -= 5.0  # Far too low to fire beside the others.
    trainer.idle_tokens[dead] = 10**6
    caught: dict[str, Tensor] = {}
    monkeypatch.setattr(trainer, "_update", lambda gradients: caught.update(gradients))
    old = {name: getattr(trainer, name).clone().requires_grad_() for name in module.PARAMETERS}
    facts = trainer.step(_batch(1))

    target = _batch(1).float() * 0.5
    pre = (target - old["b_dec"]) @ old["encoder"].T + old["b_enc"]
    places = pre.flatten().topk(3 * 64).indices if architecture == "batchtopk" else None
    kept = torch.zeros_like(pre)
    kept = (
        kept.view(-1).index_fill(0, places, 1.0).view_as(pre)
        if places is not None
        else kept.scatter(1, pre.topk(3).indices, 1.0)
    )
    error = target - (pre.relu() * kept) @ old["decoder"] - old["b_dec"]
    loss = error.square().sum() / (target - target.mean(0)).square().sum()
    unexplained = float(loss.detach())
    if n_dead:
        found = pre[:, dead].topk(4)
        # The error is what is to be explained, and the input is given: neither passes a gradient on.
        given = (target - old["b_dec"]).detach() @ old["encoder"][dead].T + old["b_enc"][dead]
        acts = torch.zeros_like(given).scatter(1, found.indices, given.gather(1, found.indices).relu())
        left = error.detach()
        aux = (acts @ old["decoder"][dead] - left).square().sum() / (left - left.mean(0)).square().sum()
        loss = loss + _SMALL.aux_coefficient * aux
    loss.backward()
    assert facts.n_dead == n_dead
    assert facts.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert facts.explained_variance == pytest.approx(1 - unexplained, rel=1e-5)
    for name, parameter in old.items():
        assert parameter.grad is not None
        torch.testing.assert_close(caught[name], parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_training_finds_a_dictionary_and_exports_it(architecture: Literal["topk", "batchtopk"]) -> None:
    settings = dataclasses.replace(_SMALL, architecture=architecture, tokens=64 * 600, dead_tokens=2_000)
    trainer = Trainer(settings, _D, scale=0.7)
    trainer.centre(_batch(0, 256))
    facts = [trainer.step(_batch(seed)) for seed in range(1, 601)]
    assert facts[-1].explained_variance > 0.8 > facts[0].explained_variance
    torch.testing.assert_close(trainer.decoder.norm(dim=1), torch.ones(_N))
    sae = trainer.autoencoder(layer=2, origin="toy")
    fresh = _batch(10_000, 2_000).float()
    error = (sae.reconstruct(fresh) - fresh).square().sum() / (fresh - fresh.mean(0)).square().sum()
    assert float(error) < 0.2
    l0 = float((sae.encode(fresh) > 0).sum(1).float().mean())
    assert l0 == pytest.approx(3, abs=0.3) if architecture == "batchtopk" else l0 <= 3
    assert (sae.config.architecture, sae.config.layer, sae.config.k, sae.config.input_scale) == (
        architecture,
        2,
        3,
        0.7,
    )


def test_dead_latents_are_revived() -> None:
    def dead_after(aux_coefficient: float) -> int:
        trainer = Trainer(dataclasses.replace(_SMALL, aux_coefficient=aux_coefficient), _D, scale=0.7)
        trainer.centre(_batch(0, 256))
        trainer.b_enc[: _N // 2] = -1.0
        return [trainer.step(_batch(seed)).n_dead for seed in range(1, 101)][-1]

    assert dead_after(1 / 4) < dead_after(0.0) / 2


def test_the_centre_is_where_most_rows_are() -> None:
    trainer = Trainer(_SMALL, _D, scale=1.0)
    rows = torch.randn(500, _D) * 0.1 + 3.0
    rows[:20] += 1000.0
    trainer.centre(rows)
    torch.testing.assert_close(trainer.b_dec, torch.full((_D,), 3.0), atol=0.05, rtol=0)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = TrainSettings(tokens=4096 * 100, warmup_share=0.1, decay_share=0.2)
    rates = [settings.learning_rate_at(step) / settings.learning_rate for step in range(100)]
    assert rates[:11] == pytest.approx([*(step / 10 for step in range(1, 11)), 1.0])
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == pytest.approx([1 - step / 20 for step in range(20)])
    constant = dataclasses.replace(settings, warmup_share=0.0, decay_share=0.0)
    assert {constant.learning_rate_at(step) for step in range(100)} == {4e-4}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "relu"}, "architecture must be batchtopk or topk"),
        ({"k": 0}, "k must be"),
        ({"k": 9000}, "between 1 and the 8192 latents"),
        ({"tokens": 100}, "at least one batch of 4096"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"warmup_share": 1.5}, "between 0 and 1"),
        ({"aux_coefficient": -1.0}, "0 or more"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        TrainSettings(**change)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    trainer = Trainer(_SMALL, _D, scale=1.0)
    with pytest.raises(DataError, match="lower the learning rate"):
        trainer.step(torch.full((64, _D), float("nan")))
