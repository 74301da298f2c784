"""From texts to a measured autoencoder in one call, which goes on where it was interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steersman.models.language_model import LanguageModel
from steersman.sae.activations import CollectProgress, CollectSettings
from steersman.sae.corpus import Corpus, open_corpus
from steersman.sae.train import TrainProgress, train_sae
from steersman.sae.trainer import TrainSettings

_COLLECT = CollectSettings(layer=2, tokens=2_000, context_tokens=32, shard_tokens=600, batch_tokens=256)
_TRAIN = TrainSettings(n_latents=64, k=8, tokens=64 * 300, batch_tokens=64, learning_rate=0.01, window_tokens=2_000)


def _corpus(tmp_path: Path, held_out: float = 0.2) -> Corpus:
    path = tmp_path / "texts.jsonl"
    words = ["sailor", "reads", "an", "old", "map", "of", "hidden", "islands", "while", "rain", "falls", "on", "us"]
    texts = [" ".join(words[(n * i) % len(words)] for i in range(1, 9)) + f" {n}" for n in range(120)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return open_corpus([path], held_out=held_out)


def test_one_call_collects_trains_and_measures(tmp_path: Path, tiny: LanguageModel) -> None:
    seen: list[CollectProgress | TrainProgress] = []
    trained = train_sae(
        tiny,
        _corpus(tmp_path),
        tmp_path / "run",
        collecting=_COLLECT,
        settings=_TRAIN,
        held_out_tokens=400,
        progress=seen.append,
    )
    assert trained.sae.config.model is not None
    assert trained.sae.config.model.matches(tiny.ref)
    assert (trained.sae.config.layer, trained.sae.config.d_sae) == (2, 64)
    assert trained.curve[-1].facts.explained_variance > 0.8 > trained.curve[0].facts.explained_variance
    assert trained.quality is not None
    measured = trained.quality.reconstruction
    assert measured.tokens >= 400
    assert measured.explained_variance > 0.7
    assert measured.l0 == pytest.approx(8, abs=1.5)
    assert trained.quality.prediction.tokens > 50
    assert [type(now) for now in seen].index(TrainProgress) > 2
    # A second call has nothing left to do and gives the same.
    assert (
        train_sae(
            tiny, _corpus(tmp_path), tmp_path / "run", collecting=_COLLECT, settings=_TRAIN, held_out_tokens=400
        ).quality
        == trained.quality
    )


def test_interrupts_anywhere_change_nothing(tmp_path: Path, tiny: LanguageModel) -> None:
    def run(folder: str, stop: float = float("inf")) -> object:
        calls = 0

        def progress(_now: CollectProgress | TrainProgress) -> None:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise KeyboardInterrupt

        return train_sae(
            tiny,
            _corpus(tmp_path),
            tmp_path / folder,
            collecting=_COLLECT,
            settings=_TRAIN,
            held_out_tokens=400,
            progress=progress,
        )

    for stop in (0, 2, 5, 8):
        with pytest.raises(KeyboardInterrupt):
            run("parts", stop)
    whole, parts = run("whole"), run("parts")
    assert whole.sae.weights_hash == parts.sae.weights_hash  # type: ignore[attr-defined]
    assert whole.quality == parts.quality  # type: ignore[attr-defined]


def test_without_held_out_text_quality_is_not_claimed(tmp_path: Path, tiny: LanguageModel) -> None:
    corpus = _corpus(tmp_path, held_out=0.0)
    trained = train_sae(
        tiny, corpus, tmp_path / "run", collecting=_COLLECT, settings=replace(_TRAIN, architecture="topk", tokens=640)
    )
    assert trained.quality is None
    assert trained.sae.threshold is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_agrees_with_the_cpu() -> None:
    from steersman.sae.trainer import Trainer

    settings = replace(_TRAIN, tokens=64 * 50)
    trainers = [Trainer(settings, 16, 1.0, torch.device(name)) for name in ("cpu", "cuda")]
    for seed in range(50):
        batch = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed)) * torch.arange(16)
        facts = [trainer.step(batch) for trainer in trainers]
    assert facts[0].explained_variance == pytest.approx(facts[1].explained_variance, abs=0.05)
