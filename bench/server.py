"""Load on a running server, from a second process: throughput, time to the first token, a crowd, isolation, a soak.

The server is started with its defaults on the bundled model, in a folder of its own. What is compared is compared within this
run: the bare engine of this process and the server take turns. The last line is one JSON object.

    python bench/server.py [--parts throughput,first,crowd,isolation,soak] [--rounds 3] [--soak-minutes 10]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from server_load import Told, ask
from server_process import CLIENTS, QUESTIONS, STRENGTH, TOKENS, Server, serving
from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.models.language_model import chat
from steersman.models.load import load_model
from steersman.sae.library import find_sae
from steersman.steering.features import add_features
from steersman.steering.recipe import Recipe

PARTS = ("throughput", "first", "crowd", "isolation", "soak")


def main() -> None:
    """Start a server, put load on it, print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, with commas")
    parser.add_argument("--rounds", type=int, default=3, help="turns of engine and server")
    parser.add_argument("--interleavings", type=int, default=1000, help="requests of the isolation part")
    parser.add_argument("--soak-minutes", type=float, default=10.0, help="length of the soak")
    parser.add_argument("--seed", type=int, default=0, help="of the order of requests")
    options = parser.parse_args()
    parts = [part for part in options.parts.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found: dict[str, Any] = {"bench": "server", "machine": platform.processor(), "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        asyncio.run(server.make_recipes())
        asyncio.run(server.warm_up())
        runs: dict[str, Callable[[], Any]] = {
            "throughput": lambda: throughput(server, options.rounds),
            "first": lambda: asyncio.run(first_token(server)),
            "crowd": lambda: asyncio.run(crowd(server)),
            "isolation": lambda: asyncio.run(isolation(server, options.interleavings, options.seed)),
            "soak": lambda: asyncio.run(soak(server, options.soak_minutes * 60, options.seed)),
        }
        for part in parts:
            found[part] = runs[part]()
            print(f"{part}: {json.dumps(found[part])}", flush=True)
    print(json.dumps(found))


# --- throughput


def throughput(server: Server, rounds: int) -> dict[str, Any]:
    """Tokens a second of 16 clients with 16 recipes, beside the bare engine with the same requests; turn by turn."""
    model = load_model()
    entry = find_sae("default")
    sae = entry.load()
    recipes = [
        Recipe(name=f"f{feature}", edits=(add_features(sae, {feature: 1.0}, strength=STRENGTH),))
        for feature in server.features
    ]
    engine = Engine(model)
    run_engine(engine, recipes, 8)
    bare, served, ratios, texts_differ = [], [], [], 0
    for _ in range(rounds):
        speed, alone = run_engine(engine, recipes, TOKENS)
        began = time.perf_counter()
        told = asyncio.run(_all_at_once(server, TOKENS))
        seconds = time.perf_counter() - began
        _check(told)
        bare.append(speed)
        served.append(sum(each.tokens for each in told) / seconds)
        ratios.append(served[-1] / bare[-1])
        texts_differ += sum(each.text != text for each, text in zip(told, alone, strict=True))
    return {
        "engine_tokens_per_s": round(median(bare), 1),
        "server_tokens_per_s": round(median(served), 1),
        "engine_turns": [round(each, 1) for each in bare],
        "server_turns": [round(each, 1) for each in served],
        "ratio": round(median(ratios), 3),
        "ratios": [round(each, 3) for each in ratios],
        "answers_unlike_the_engine's": texts_differ,
    }


def run_engine(engine: Engine, recipes: Sequence[Recipe], tokens: int) -> tuple[float, list[str]]:
    """Tokens a second of the bare engine, and its answers."""
    requests = [
        Request(prompt=chat(QUESTIONS[index % len(QUESTIONS)]), recipe=recipe, sampling=Sampling(max_tokens=tokens))
        for index, recipe in enumerate(recipes)
    ]
    began = time.perf_counter()
    results = engine.generate(requests)
    seconds = time.perf_counter() - began
    return sum(len(result.token_ids) for result in results) / seconds, [result.text for result in results]


async def _all_at_once(server: Server, tokens: int) -> list[Told]:
    return await asyncio.gather(
        *(
            server.chat(f"f{feature}", QUESTIONS[index % len(QUESTIONS)], tokens)
            for index, feature in enumerate(server.features)
        )
    )


# --- time to the first token


async def first_token(server: Server) -> dict[str, Any]:
    """95th percentile of the time to the first piece of text: one client, sixteen that ask again and again, sixteen at once."""

    async def client(index: int, times: int) -> list[float]:
        rng, found = random.Random(index), []
        for _ in range(times):
            await asyncio.sleep(rng.random() * 0.5)  # Nobody asks within the same step as all others.
            told = await server.chat(f"f{server.features[index]}", rng.choice(QUESTIONS), 48)
            _check([told])
            found.append(told.first_s)
        return found

    single = await client(0, 60)
    many = [each for part in await asyncio.gather(*(client(index, 6) for index in range(CLIENTS))) for each in part]
    burst = [told.first_s for _ in range(3) for told in await _all_at_once(server, 8)]
    one, all_, at_once = (_percentile(values, 0.95) for values in (single, many, burst))
    return {
        "single_p95_ms": round(one * 1000),
        "single_median_ms": round(median(single) * 1000),
        "sixteen_p95_ms": round(all_ * 1000),
        "sixteen_median_ms": round(median(many) * 1000),
        "ratio": round(all_ / one, 2),
        "burst_p95_ms": round(at_once * 1000),
        "burst_ratio": round(at_once / one, 2),
    }


# --- a crowd


async def crowd(server: Server) -> dict[str, Any]:
    """64 clients at once, four requests each: every answer is whole, or an honest "busy" that says when to come back."""
    before = server.rss_mib

    async def client(index: int) -> list[Told]:
        found = []
        for turn in range(4):
            told = await server.chat(f"f{server.features[index % CLIENTS]}", QUESTIONS[turn], 32)
            found.append(told)
            if told.status == 503:
                await asyncio.sleep(float(told.headers.get("retry-after", "1")))
        return found

    answers = [told for part in await asyncio.gather(*(client(index) for index in range(64))) for told in part]
    counts = Counter(_ending(told) for told in answers)
    return {"answers": dict(counts), "rss_mib": [round(before), round(server.rss_mib)]}


# --- isolation


async def isolation(server: Server, times: int, seed: int) -> dict[str, Any]:
    """Random requests beside random others; each answer must be what the request gives alone."""
    cases: list[tuple[str | None, str]] = [
        (recipe, question)
        for recipe in (None, *(f"f{feature}" for feature in server.features))
        for question in QUESTIONS
    ]
    alone = {}
    for case in cases:
        told = await server.chat(*case, 12)
        _check([told])
        alone[case] = told.text
    rng, seats, differ = random.Random(seed), asyncio.Semaphore(CLIENTS), 0

    async def one(case: tuple[str | None, str], wait_s: float) -> bool:
        async with seats:
            await asyncio.sleep(wait_s)
            told = await server.chat(*case, 12)
            _check([told])
            return told.text != alone[case]

    drawn = [(rng.choice(cases), rng.random() * 0.1) for _ in range(times)]
    differ = sum(await asyncio.gather(*(one(*each) for each in drawn)))
    return {
        "requests": times,
        "kinds": len(cases),
        "different_answers_alone": len(set(alone.values())),
        "differ": differ,
    }


# --- a soak


async def soak(server: Server, seconds: float, seed: int) -> dict[str, Any]:
    """Mixed traffic with disconnects; memory after a tenth of the time, and at the end."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    memory: list[float] = []

    async def client(index: int) -> None:
        rng = random.Random(seed * 1000 + index)
        while time.monotonic() < end:
            for name, told in await _something(server, rng):
                counts[f"{name}: {_ending(told)}"] += 1
            await asyncio.sleep(rng.random() * 0.3)

    async def watch() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(max(1.0, seconds / 20))
            memory.append(server.rss_mib)

    await asyncio.gather(watch(), *(client(index) for index in range(12)))
    await asyncio.sleep(2)
    left = (await ask(server.address, "GET", "/readyz")).status
    settled, last = memory[max(0, len(memory) // 10)], server.rss_mib
    return {
        "minutes": round(seconds / 60, 1),
        "requests": sum(counts.values()),
        "endings": dict(sorted(counts.items())),
        "ready_afterwards": left == 200,
        "rss_mib": [round(each) for each in (*memory[:: max(1, len(memory) // 8)], last)],
        "rss_growth_percent": round(100 * (last / settled - 1), 2),
    }


async def _something(server: Server, rng: random.Random) -> list[tuple[str, Told]]:
    """One of the things that clients do."""
    recipe, question = f"f{rng.choice(server.features)}", rng.choice(QUESTIONS)
    kinds: list[tuple[int, str, Callable[[], Awaitable[Told]]]] = [
        (6, "stream", lambda: server.chat(recipe, question, rng.randint(4, 64))),
        (3, "stream left early", lambda: server.chat(recipe, question, 64, leave_after=rng.randint(1, 8))),
        (
            2,
            "plain",
            lambda: _post(server, "/v1/completions", {"model": "default", "prompt": question, "max_tokens": 16}),
        ),
        (
            1,
            "wrong field",
            lambda: _post(server, "/v1/completions", {"model": "default", "prompt": question, "max_tokns": 1}),
        ),
        (1, "list recipes", lambda: ask(server.address, "GET", "/v1/recipes?limit=5")),
        (1, "search features", lambda: ask(server.address, "GET", "/v1/features?query=sea&limit=3")),
        (1, "not there", lambda: ask(server.address, "GET", "/v1/recipes/nobody")),
    ]
    (choice,) = rng.choices(kinds, [kind[0] for kind in kinds])
    return [(choice[1], await choice[2]())]


async def _post(server: Server, path: str, body: dict[str, Any]) -> Told:
    return await ask(server.address, "POST", path, body)


# --- helpers


def _ending(told: Told) -> str:
    """How a request ended, in a word or two."""
    if told.error:
        return f"error {told.error}"
    if told.status == 503:
        return "busy" if "retry-after" in told.headers else "busy without a time"
    if told.status != 200:
        return f"refused {told.status}"
    return "whole" if told.is_whole else "left"


def _check(told: Sequence[Told]) -> None:
    for each in told:
        if each.error or each.status != 200 or not each.is_whole:
            sys.exit(f"a request failed: {each.status} {each.error} {each.body}")


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


if __name__ == "__main__":
    main()
