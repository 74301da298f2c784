"""Measure training beside sae-lens, feature search, and what clamping features costs.

Every comparison is a ratio of runs that alternate within this one process; the tables show medians over the rounds. The last
line is one JSON object. sae-lens is measured where it is installed (`pip install 'steersman[sae]'`).

    python bench/sae.py [--rounds 5] [--latents 4096] [--skip train search million clamp]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steersman.engine.engine import Engine, EngineLimits
from steersman.engine.request import Request, Sampling
from steersman.models.language_model import chat
from steersman.models.load import load_model
from steersman.models.sentence_encoder import SentenceEncoder, load_encoder
from steersman.sae.index.facts import FeatureIndex, IndexFacts, Label, no_contexts
from steersman.sae.index.file import load_index
from steersman.sae.index.search import search
from steersman.sae.library import find_sae
from steersman.sae.model import SparseAutoencoder
from steersman.sae.trainer import Trainer, TrainSettings
from steersman.settings import Settings
from steersman.steering.edits import Clamp
from steersman.steering.features import latent
from steersman.steering.recipe import Recipe

BATCH, K, STEPS = 4096, 40, 6
QUERIES = (
    "talking like a pirate",
    "python code",
    "a sad farewell",
    "explain it to a child",
    "cooking",
    "legal contract",
)
SECTIONS = ("train", "search", "million", "clamp")


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs of each side")
    parser.add_argument("--latents", type=int, default=4096, help="of the SAE that is trained")
    parser.add_argument("--skip", nargs="*", default=[], choices=SECTIONS, help="sections to leave out")
    options = parser.parse_args()
    entry = find_sae("default", Settings.from_env().cache)
    sae = entry.load()
    found: dict[str, Any] = {}
    if "train" not in options.skip:
        found |= training(sae, options.latents, options.rounds)
    encoder = load_encoder()
    if "search" not in options.skip:
        found |= search_ms("shipped index", load_index(entry.index_folder), encoder)
    if "million" not in options.skip:
        found |= search_ms("synthetic index of 1,000,000 features", synthetic_index(sae, encoder), encoder)
    if "clamp" not in options.skip:
        found |= clamping(sae, load_index(entry.index_folder), options.rounds)
    for name, value in found.items():
        print(f"{name:<64} {value:>10,.2f}")
    about = {"bench": "sae", "rounds": options.rounds, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(
        json.dumps(about | {"machine": platform.machine()} | {name: round(value, 3) for name, value in found.items()})
    )


def training(sae: SparseAutoencoder, latents: int, rounds: int) -> dict[str, float]:
    """Tokens per second of training steps, ours beside sae-lens' (in the faster of its number formats)."""
    batches = [residuals(sae, seed) for seed in range(STEPS)]
    scale = math.sqrt(sae.config.d_model) / float(torch.cat(batches).norm(dim=1).mean())
    sides: dict[str, Callable[[Tensor], object]] = {}
    settings = TrainSettings(n_latents=latents, k=K, tokens=BATCH * 10_000)
    ours = Trainer(settings, sae.config.d_model, scale)
    ours.centre(batches[0])
    sides["steersman"] = ours.step
    if importlib.util.find_spec("sae_lens"):
        for name, autocast in (("sae-lens, float32", False), ("sae-lens, bfloat16", True)):
            sides[name] = sae_lens_step(sae.config.d_model, latents, scale, autocast)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, step in sides.items():
            began = time.perf_counter()
            for batch in batches:
                step(batch)
            if number:  # The first round warms up.
                speeds[name].append(BATCH * STEPS / (time.perf_counter() - began))
    what = f"training at {latents} latents"
    found = {f"{what}, {name}, tokens/s": statistics.median(values) for name, values in speeds.items()}
    others = [values for name, values in speeds.items() if name != "steersman"]
    if others:
        best = max(others, key=statistics.median)
        ratios = [one / other for one, other in zip(speeds["steersman"], best, strict=True)]
        found[f"{what}, against the faster sae-lens"] = statistics.median(ratios)
    return found


def sae_lens_step(d_model: int, latents: int, scale: float, autocast: bool) -> Callable[[Tensor], object]:
    """One training step of sae-lens' own trainer on a BatchTopK SAE of the same size."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = BatchTopKTrainingSAEConfig(d_in=d_model, d_sae=latents, k=K)
    about = SAETrainerConfig(
        total_training_samples=BATCH * 10_000,
        train_batch_size_samples=BATCH,
        lr=4e-4,
        lr_end=4e-4,
        autocast=autocast,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(about, BatchTopKTrainingSAE(config), iter(()))

    def step(batch: Tensor) -> object:
        trained = trainer.step(batch.float() * scale)
        trainer.n_training_steps += 1
        return trained

    return step


def residuals(sae: SparseAutoencoder, seed: int) -> Tensor:
    """Activations to train on, float16, as they are stored: sums of forty decoder rows and some noise."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(sae.config.d_sae, (BATCH, K), generator=made)
    values = torch.rand(BATCH, K, generator=made) ** 3 * 40
    h = sae.decode_sparse(ids, values)
    return (h + 2 * torch.randn(h.shape, generator=made)).to(torch.float16)


def search_ms(what: str, index: FeatureIndex, encoder: SentenceEncoder) -> dict[str, float]:
    """Median and worst time of a warm search, the query's embedding included, in milliseconds."""
    search(index, QUERIES[0], encoder)
    times = []
    for _ in range(10):
        for query in QUERIES:
            began = time.perf_counter()
            search(index, query, encoder)
            times.append(1000 * (time.perf_counter() - began))
    return {f"search, {what}, median ms": statistics.median(times), f"search, {what}, slowest ms": max(times)}


def synthetic_index(sae: SparseAutoencoder, encoder: SentenceEncoder, n: int = 1_000_000) -> FeatureIndex:
    """An index of random embeddings; contexts hold a single token each."""
    made = torch.Generator().manual_seed(0)
    tokens, activations = no_contexts(n, 1, 1)
    label = Label(text="synthetic")
    model = sae.config.model
    assert model is not None
    embeddings = []
    for _ in range(2):
        rows = torch.empty(n, encoder.width, dtype=torch.float16)
        for start in range(0, n, 100_000):
            block = torch.randn(100_000, encoder.width, generator=made)
            rows[start : start + 100_000] = (block / block.norm(dim=1, keepdim=True)).half()
        embeddings.append(rows)
    return FeatureIndex(
        facts=IndexFacts(sae=sae.ref("synthetic"), model=model, tokens=n, sources={}, encoder=encoder.name),
        density=torch.full((n,), 0.001),
        mean_activation=torch.ones(n),
        max_activation=torch.ones(n),
        context_tokens=tokens,
        context_activations=activations,
        promoted=torch.zeros(n, 1, dtype=torch.int32),
        suppressed=torch.zeros(n, 1, dtype=torch.int32),
        neighbours=torch.zeros(n, 1, dtype=torch.int32),
        cosines=torch.zeros(n, 1),
        labels=(label,) * n,
        label_embeddings=embeddings[0],
        context_embeddings=embeddings[1],
    )


def clamping(sae: SparseAutoencoder, index: FeatureIndex, rounds: int) -> dict[str, float]:
    """Time of decoding with five features clamped in every row, over that of plain decoding."""
    model = load_model()
    often = index.density.argsort(descending=True)[20:25].tolist()
    edits = tuple(
        Clamp(layer=sae.config.layer, target=latent(sae, feature), value=float(index.mean_activation[feature]))
        for feature in often
    )
    recipe = Recipe(name="clamp", edits=edits)
    sampling = Sampling(max_tokens=96, ignore_eos=True)
    found = {}
    for n in (1, 16):
        engine = Engine(model, EngineLimits(slots=n))
        requests = {
            what: [Request(prompt=chat("What is rain?"), recipe=steered, sampling=sampling) for _ in range(n)]
            for what, steered in (("plain", None), ("clamped", recipe))
        }
        times: dict[str, list[float]] = {what: [] for what in requests}
        for number in range(rounds + 1):
            for what in sorted(requests, reverse=bool(number % 2)):
                began = time.perf_counter()
                engine.generate(requests[what])
                if number:
                    times[what].append(time.perf_counter() - began)
        ratios = [one / other for one, other in zip(times["clamped"], times["plain"], strict=True)]
        found[f"clamp on 5 features, batch of {n}, time against plain"] = statistics.median(ratios)
    return found


if __name__ == "__main__":
    main()
