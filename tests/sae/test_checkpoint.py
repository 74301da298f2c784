"""An interrupted training ends with the same weights, bit for bit; a checkpoint is whole or the one before."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from steersman.errors import DataError, StorageError
from steersman.models.language_model import ModelRef
from steersman.sae import train as module
from steersman.sae.checkpoint import FACTS
from steersman.sae.shards import ActivationStore, StoreIndex
from steersman.sae.train import TrainedSae, TrainProgress, fit
from steersman.sae.trainer import TrainSettings

_SETTINGS = TrainSettings(
    n_latents=48, k=4, tokens=64 * 50, batch_tokens=64, dead_tokens=70, learning_rate=0.01, window_tokens=500
)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    index = StoreIndex(
        model=ModelRef(id="m", config_hash="c", weights_hash="w"), layer=1, d_model=16, context_tokens=8, shard_tokens=300,
        batch_tokens=8, side="train", held_out=0.0, mix={"everything": 1.0}, seed=0, corpus_sha256="s",
    )  # fmt: skip
    store = ActivationStore(tmp_path / "activations", index)
    random = torch.Generator().manual_seed(0)
    for _ in range(4):
        rows = torch.randn(300, 16, generator=random) * torch.rand(16, generator=random)
        nothing = torch.zeros(300, dtype=torch.int32)
        store = store.appended({"activations": rows.half(), "tokens": nothing, "pieces": nothing + 1}, pieces=1)
    return store


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_STEPS", 10)
    monkeypatch.setattr(module, "REPORT_STEPS", 5)


def _stop_at(step: int) -> Callable[[TrainProgress], None]:
    def progress(now: TrainProgress) -> None:
        if now.point.step == step:
            raise KeyboardInterrupt

    return progress


def _same(one: TrainedSae, other: TrainedSae) -> bool:
    return one.sae.weights_hash == other.sae.weights_hash and one.curve == other.curve


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_an_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, store: ActivationStore, architecture: Literal["topk", "batchtopk"]
) -> None:
    settings = replace(_SETTINGS, architecture=architecture)
    whole = fit((store,), tmp_path / "whole", settings)
    for step in (5, 15, 30, 45):
        with pytest.raises(KeyboardInterrupt):
            fit((store,), tmp_path / "parts", settings, progress=_stop_at(step))
    seen: list[TrainProgress] = []
    parts = fit((store,), tmp_path / "parts", settings, progress=seen.append)
    assert _same(whole, parts)
    assert [now.point.step for now in seen] == [45, 50]
    assert [point.step for point in whole.curve] == [1, *range(5, 51, 5)]
    assert any(point.facts.n_dead for point in whole.curve)  # So that reviving was part of it.
    # A finished training is only read.
    again: list[TrainProgress] = []
    assert _same(fit((store,), tmp_path / "parts", settings, progress=again.append), whole)
    assert again == []


def test_one_checkpoint_is_kept_and_a_full_disk_leaves_it_whole(tmp_path: Path, store: ActivationStore) -> None:
    folder, before = tmp_path / "parts", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(now: TrainProgress) -> None:
        if now.point.step == 15:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))

    try:
        with pytest.raises(StorageError, match="cannot write"):
            fit((store,), folder, _SETTINGS, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in folder.iterdir()) == [FACTS, "step-00000010.safetensors"]
    assert _same(fit((store,), folder, _SETTINGS), fit((store,), tmp_path / "whole", _SETTINGS))
    assert sorted(path.name for path in folder.iterdir()) == [FACTS, "step-00000050.safetensors"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, store: ActivationStore) -> None:
    fit((store,), tmp_path / "a", _SETTINGS)
    with pytest.raises(DataError, match="another learning rate"):
        fit((store,), tmp_path / "a", replace(_SETTINGS, learning_rate=0.02))
    with pytest.raises(DataError, match="another shards"):
        fit((store, store), tmp_path / "a", replace(_SETTINGS))
    other = ActivationStore(store.folder, replace(store.index, layer=3))
    with pytest.raises(DataError, match="another layer"):
        fit((other,), tmp_path / "a", _SETTINGS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / FACTS).write_text('{"steersman_checkpoint": 1}'),
        lambda folder: (folder / FACTS).write_text("{"),
        lambda folder: next(folder.glob("step-*")).unlink(),
        lambda folder: next(folder.glob("step-*")).write_bytes(b"half"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, store: ActivationStore, damage: Callable[[Path], Any]) -> None:
    fit((store,), tmp_path / "a", _SETTINGS)
    damage(tmp_path / "a")
    with pytest.raises(DataError, match=r"is damaged .* to start again"):
        fit((store,), tmp_path / "a", _SETTINGS)
