"""Measure the engine beside transformers, repeng and steering-vectors on the bundled model.

Every figure is a ratio of runs that alternate within this one process; the tables show medians over the rounds.
The last line is one JSON object.

    python bench/engine.py [--rounds 3] [--tokens 64]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steersman.engine.engine import Engine, EngineLimits
from steersman.engine.request import Request, Sampling
from steersman.models.language_model import LanguageModel, chat
from steersman.models.load import load_model
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

QUESTIONS = (
    "What is the internet?",
    "How do airplanes fly?",
    "Explain why the sea is salty, in two short paragraphs.",
    "Write a short poem about a lighthouse.",
    "What should I cook tonight with rice, eggs and spinach?",
    "Tell me what a bank does with the money that people bring to it.",
    "Why do cats purr?",
    "Give me three tips for learning a new language quickly.",
)
LAYER, STRENGTH, SEED = 9, 0.2, 0
Run = Callable[[], float]


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs of each side")
    parser.add_argument("--tokens", type=int, default=64, help="tokens written per request")
    options = parser.parse_args()
    model = load_model()
    weights_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())
    vectors = random_vectors(model, 32)
    sides: dict[str, Run] = {}
    for n in (1, 8, 16, 32):
        sides[f"engine plain {n}"] = engine_run(model, [None] * n, options.tokens)
        if n == 16:  # Right beside what it is compared with.
            sides["engine steered 16"] = engine_run(
                model, [as_recipe(vector) for vector in vectors[:16]], options.tokens
            )
        sides[f"transformers {n}"] = transformers_run(model, n, options.tokens)
    sides["repeng 16, one by one"] = repeng_run(vectors[:16], options.tokens)
    sides["steering-vectors 16, one by one"] = steering_vectors_run(model, vectors[:16], options.tokens)
    speeds = alternate(sides, options.rounds)
    ratios = {
        "16 recipes in one batch, time against unsteered": ratio(speeds, "engine plain 16", "engine steered 16"),
        "against repeng one by one, 16 requests": ratio(speeds, "engine steered 16", "repeng 16, one by one"),
        "against steering-vectors one by one, 16 requests": ratio(
            speeds, "engine steered 16", "steering-vectors 16, one by one"
        ),
        **{
            f"against transformers generate, batch of {n}": ratio(speeds, f"engine plain {n}", f"transformers {n}")
            for n in (1, 8, 16, 32)
        },
    }
    extra_mib = memory_mib(model, vectors[:16])
    report(speeds, ratios, extra_mib, weights_bytes, model, options)


def alternate(sides: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each side in each round, after one warm-up; sides take turns so that drift hits all alike."""
    for run in sides.values():
        run()
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            speeds[name].append(run())
    return speeds


def ratio(speeds: dict[str, list[float]], one: str, other: str) -> float:
    """Median over rounds of one side's speed over the other's."""
    return statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))


def random_vectors(model: LanguageModel, n: int) -> list[torch.Tensor]:
    """Unit vectors `(d_model,)`; their direction does not matter for speed."""
    generator = torch.Generator().manual_seed(SEED)
    vectors = torch.randn(n, model.d_model, generator=generator)
    return list(vectors / vectors.norm(dim=-1, keepdim=True))


def as_recipe(vector: torch.Tensor) -> Recipe:
    """A recipe that adds the vector at one layer, at every token."""
    return Recipe(name="bench", edits=(Add(layer=LAYER, vector=Vector(vector), strength=STRENGTH),))


def engine_run(model: LanguageModel, recipes: Sequence[Recipe | None], tokens: int) -> Run:
    """All requests at once through the engine."""
    engine = Engine(model, EngineLimits(slots=len(recipes)))
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    requests = [
        Request(prompt=chat(question), recipe=recipe, sampling=sampling)
        for question, recipe in zip(questions(len(recipes)), recipes, strict=True)
    ]
    return timed(lambda: sum(len(result.token_ids) for result in engine.generate(requests)))


def transformers_run(model: LanguageModel, n: int, tokens: int) -> Run:
    """The same requests as one batch, padded on the left, through `generate`."""
    texts = [model.render(chat(question)) for question in questions(n)]
    model.tokenizer.padding_side = "left"
    batch = model.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)

    def run() -> int:
        with torch.inference_mode():
            output = model.hf.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return int((output.shape[1] - batch.input_ids.shape[1]) * n)

    return timed(run)


def one_by_one(model: LanguageModel, vectors: Sequence[torch.Tensor], tokens: int, steer: Any) -> Run:
    """Each request alone through `generate`, inside `steer(vector)`, a context manager."""
    batches = [
        model.tokenizer(model.render(chat(question)), return_tensors="pt", add_special_tokens=False)
        for question in questions(len(vectors))
    ]

    def run() -> int:
        written = 0
        for batch, vector in zip(batches, vectors, strict=True):
            with torch.inference_mode(), steer(vector):
                output = model.hf.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
            written += output.shape[1] - batch.input_ids.shape[1]
        return written

    return timed(run)


def repeng_run(vectors: Sequence[torch.Tensor], tokens: int) -> Run:
    """repeng's ControlModel, its vector set anew for each request. It wraps blocks in place, so it gets its own model."""
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # type: ignore[attr-defined]  # repeng 0.4 still uses the name that NumPy 2 removed
    from repeng import ControlModel, ControlVector

    model = load_model()
    wrapped = ControlModel(model.hf, [LAYER])
    norm = Engine(model).profile.mean_norms[LAYER]

    @contextlib.contextmanager
    def steer(vector: torch.Tensor) -> Iterator[None]:
        directions = {LAYER: (vector * norm).numpy()}
        wrapped.set_control(ControlVector(model_type="llama", directions=directions), STRENGTH)
        yield
        wrapped.reset()

    return one_by_one(model, vectors, tokens, steer)


def steering_vectors_run(model: LanguageModel, vectors: Sequence[torch.Tensor], tokens: int) -> Run:
    """steering-vectors' `apply`, around each request."""
    from steering_vectors import SteeringVector

    norm = Engine(model).profile.mean_norms[LAYER]

    def steer(vector: torch.Tensor) -> Any:
        scaled = (vector * norm).to(model.dtype)
        return SteeringVector({LAYER: scaled}, "decoder_block").apply(model.hf, multiplier=STRENGTH)

    return one_by_one(model, vectors, tokens, steer)


def memory_mib(model: LanguageModel, vectors: Sequence[torch.Tensor]) -> float:
    """Peak resident memory while 16 rows of about 1,000 tokens run, above what the process held before; MiB."""
    gc.collect()
    before = status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Set the peak back to the present.
    text = " ".join(f"Item {index} of the long list is described here." for index in range(88))
    sampling = Sampling(max_tokens=32, ignore_eos=True)
    with Engine(model, EngineLimits(slots=len(vectors))) as engine:
        engine.generate([Request(prompt=text, recipe=as_recipe(vector), sampling=sampling) for vector in vectors])
    return (status_kib("VmHWM") - before) / 1024


def status_kib(field: str) -> int:
    """A field of this process's status, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def questions(n: int) -> list[str]:
    """The first n of the questions, over and over."""
    return [QUESTIONS[index % len(QUESTIONS)] for index in range(n)]


def timed(run: Callable[[], int]) -> Run:
    """Tokens per second of a function that says how many tokens it wrote."""

    def speed() -> float:
        start = time.perf_counter()
        written = run()
        return written / (time.perf_counter() - start)

    return speed


def report(
    speeds: dict[str, list[float]],
    ratios: dict[str, float],
    extra_mib: float,
    weights_bytes: int,
    model: LanguageModel,
    options: argparse.Namespace,
) -> None:
    """Print the tables, then one JSON line."""
    print(f"\n{'tokens per second':<52} {'median':>8} {'lowest':>8} {'highest':>8}")
    for name, values in speeds.items():
        print(f"{name:<52} {statistics.median(values):>8.1f} {min(values):>8.1f} {max(values):>8.1f}")
    print(f"\n{'ratio, median of rounds':<52} {'':>8}")
    for name, value in ratios.items():
        print(f"{name:<52} {value:>8.2f}")
    print(f"{'memory beyond the weights, 16 rows of 1,000 tokens':<52} {extra_mib:>8.0f} MiB")
    facts = {
        "bench": "engine",
        "tokens_per_s": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "memory_beyond_weights_mib": round(extra_mib),
        "weights_mib": round(weights_bytes / 2**20),
        "rounds": options.rounds,
        "tokens": options.tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
