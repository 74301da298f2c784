"""Measure topic alignment: what each method costs per token, the medical example, and whether the verdict predicts the effect.

The methods and unsteered runs take turns step by step within this one process; the table shows medians of the differences. The
last line is one JSON object.

    python bench/topic.py [--skip-timing] [--rounds 5] [--tokens 64] [--data FOLDER] [--predict] [--methods clamp,swap]
                          [--topics 26]

`--data` is the folder with `d_align_prompts.csv` and `d_ref_prompts.csv`. `--predict` lets the model write texts on many topics,
makes some by rule, and correlates the verdict's number with what steering does on unseen prompts and texts.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from steersman.auto.prompts import general_prompts
from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.engine.request import Request, Sampling
from steersman.models.language_model import chat
from steersman.models.load import load_model
from steersman.models.residuals import profile_texts
from steersman.models.sentence_encoder import SentenceEncoder, load_encoder
from steersman.sae.library import find_sae
from steersman.sae.model import SparseAutoencoder
from steersman.steering.methods import topic_alignment, topic_uncertainty
from steersman.steering.methods.topic_texts import load_texts
from steersman.steering.recipe import Recipe

SUBJECTS = (
    "medicine", "the sea and ships", "cooking", "football", "computer programming", "the law", "music", "war", "astronomy",
    "religion", "money and banking", "farming", "cats and dogs", "elections", "mathematics", "fashion", "cars", "weather",
    "ancient Rome", "schools",
)  # fmt: skip
ASPECTS = (
    "the history", "a problem", "the people", "a beginner's mistake", "a famous example", "the tools", "the future", "a place",
    "a rule", "a joke", "a common question", "a good day",
)  # fmt: skip
KINDS: tuple[topic_alignment.Steering, ...] = ("sae", "clamp", "weight", "swap")
ALIGNED, READ = 4, 8
"""Of a topic's texts the first show the topic, the next stand in the reference beside those of all other topics, so that latents
of the topic fire there at all; the rest measures the effect."""


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="written by each request")
    parser.add_argument("--data", type=Path, help="folder of the medical example")
    parser.add_argument("--predict", action="store_true", help="correlate the verdict with the effect")
    parser.add_argument("--methods", default="clamp,swap", help="steered with for --predict")
    parser.add_argument("--topics", type=int, default=26, help="for --predict; at most 26")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-timing", action="store_true")
    options = parser.parse_args()
    model, sae, encoder = load_model(), find_sae("default").load(), load_encoder()
    engine, found = Engine(model), dict[str, Any]()
    if not options.skip_timing:
        found |= timing(engine, sae, encoder, options.rounds, options.tokens)
    if options.data:
        texts = [load_texts(options.data / f"d_{name}_prompts.csv") for name in ("align", "ref")]
        found |= medical(engine, sae, encoder, *texts)
    if options.predict:
        found |= predict(engine, sae, encoder, options.methods.split(","), options.topics, options.seed)
    for name, value in found.items():
        print(f"{name:<64} {value if isinstance(value, str) else f'{value:>10,.3f}'}")
    about = {"bench": "topic", "threads": torch.get_num_threads(), "torch": torch.__version__}
    facts = {name: value if isinstance(value, str) else round(value, 4) for name, value in found.items()}
    print(json.dumps(about | {"machine": platform.machine(), "rounds": options.rounds} | facts))


def recipes(
    engine: Engine, sae: SparseAutoencoder, encoder: SentenceEncoder, align: Sequence[str], reference: Sequence[str]
) -> tuple[topic_alignment.TopicScores, dict[str, Recipe]]:
    """Scores for a topic, and a recipe of each method."""
    scored = topic_alignment.score_topic(engine.model, sae, encoder, align, reference)
    ref = sae.ref("default")
    made: dict[str, Recipe] = {
        kind: topic_alignment.fit(scored, sae, model=engine.model.ref, sae_ref=ref, name=kind, method=kind)
        for kind in KINDS
    }
    return scored, made


def timing(
    engine: Engine, sae: SparseAutoencoder, encoder: SentenceEncoder, rounds: int, tokens: int
) -> dict[str, float]:
    """Milliseconds that a step of writing takes longer than unsteered, the ratio, and those for reading the prompts.

    Every method has an engine of its own over the same weights, and they take turns step by step, so that a machine which is
    slower for a second is slower for all.
    """
    texts = profile_texts()
    _, made = recipes(engine, sae, encoder, texts[:3], texts)
    sides: dict[str, Recipe | None] = {"unsteered": None, **made}
    engines = {name: Engine(engine.model) for name in sides}
    found = dict[str, float]()
    for rows in (1, 16):
        reads: dict[str, list[float]] = {name: [] for name in sides}
        steps: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, each in _in_turns(engines, sides, rows, tokens).items():
                if number:  # The first round warms up.
                    reads[name].append(sum(each[: 1 - tokens]))
                    steps[name] += each[1 - tokens :]
        for name in made:
            pairs = list(zip(steps[name], steps["unsteered"], strict=True))
            found[f"{name}, batch {rows}: ms a step more"] = statistics.median(a - b for a, b in pairs)
            found[f"{name}, batch {rows}: ratio to unsteered"] = statistics.median(a / b for a, b in pairs)
            both = zip(reads[name], reads["unsteered"], strict=True)
            found[f"{name}, batch {rows}: ms more for the prompts"] = statistics.median(a - b for a, b in both)
        found[f"unsteered, batch {rows}: ms a step"] = statistics.median(steps["unsteered"])
        found[f"unsteered, batch {rows}: ms for the prompts"] = statistics.median(reads["unsteered"])
    return found


def _in_turns(
    engines: Mapping[str, Engine], sides: Mapping[str, Recipe | None], rows: int, tokens: int
) -> dict[str, list[float]]:
    """Milliseconds of every step, the first to read prompts, the last `tokens - 1` to write."""
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    asked = {
        name: [
            engines[name].submit(Request(prompt=chat(text), recipe=recipe, sampling=sampling))
            for text in general_prompts()[:rows]
        ]
        for name, recipe in sides.items()
    }
    names, taken = list(sides), {name: list[float]() for name in sides}
    while not all(ticket.is_done for tickets in asked.values() for ticket in tickets):
        for name in names:
            began = time.perf_counter()
            engines[name].step()
            taken[name].append((time.perf_counter() - began) * 1e3)
        names = names[1:] + names[:1]  # Nobody always follows the same one.
    return taken


def medical(
    engine: Engine, sae: SparseAutoencoder, encoder: SentenceEncoder, align: Sequence[str], reference: Sequence[str]
) -> dict[str, Any]:
    """Steer everyday prompts with the paper's texts; how much nearer to medicine the answers come."""
    scored, made = recipes(engine, sae, encoder, align, reference)
    known = topic_uncertainty.assess(engine.model, sae, scored, align)
    prompts = general_prompts()[:8]
    centre = encoder.encode([text[:1000] for text in align]).mean(0)
    plain = answers(engine, prompts, None)
    found: dict[str, Any] = {"medical: number": known.number.mean, "medical: verdict": known.verdict}
    found |= {"medical: unexplained": known.topic_error, "medical: unexplained, reference": known.reference_error}
    found["medical: latents that fire on the reference"] = known.fired_share
    found["medical: likeness, unsteered"] = float((encoder.encode(plain) @ centre).mean())
    for kind, recipe in made.items():
        written = answers(engine, prompts, recipe)
        found[f"medical: likeness, {kind}"] = float((encoder.encode(written) @ centre).mean())
        print(f"--- {kind}: {written[0][:200]!r}")
    return found


def predict(
    engine: Engine, sae: SparseAutoencoder, encoder: SentenceEncoder, methods: Sequence[str], n: int, seed: int
) -> dict[str, Any]:
    """Rank correlation of the verdict's number with two effects of each method: on answers to unseen prompts, on unseen texts."""
    topics = dict(list((written_topics(engine, seed) | made_topics(seed)).items())[-n:])
    centres = {name: encoder.encode(texts[READ:]).mean(0) for name, texts in topics.items()}
    prompts, held = general_prompts()[:12], {name: texts[READ:] for name, texts in topics.items()}
    plain, plain_loss = answers(engine, prompts, None), losses(engine, held, None)
    numbers, can = list[float](), 0
    effects: dict[str, list[float]] = {f"{method}, {what}": [] for method in methods for what in ("answers", "texts")}
    reference = [text for texts in topics.values() for text in texts[ALIGNED:READ]]
    for name, texts in topics.items():
        scored, made = recipes(engine, sae, encoder, texts[:ALIGNED], reference)
        known = topic_uncertainty.assess(engine.model, sae, scored, texts[:ALIGNED], seed=seed)
        numbers.append(known.number.mean or 0.0)
        can += known.verdict == "can"
        for method in methods:
            written, loss = answers(engine, prompts, made[method]), losses(engine, held, made[method])
            moved = (encoder.encode(written) - encoder.encode(plain)).mean(0)
            likes = {other: float(moved @ centre) for other, centre in centres.items()}
            gains = {other: loss[other] - plain_loss[other] for other in topics}
            for what, changes in (("answers", likes), ("texts", gains)):
                # Against the other topics: what drifts alike towards all of them is no effect.
                rest = statistics.mean(change for other, change in changes.items() if other != name)
                effects[f"{method}, {what}"].append(changes[name] - rest)
        shown = "  ".join(f"{what} {values[-1]:+.4f}" for what, values in effects.items())
        print(f"{name:<24} {numbers[-1]:.3f} {known.verdict:<10} {shown}", flush=True)
    found: dict[str, Any] = {"predict: topics": len(topics), "predict: that it can represent": can}
    for what, values in effects.items():
        rho, low, high, p = spearman_interval(numbers, values, seed)
        found[f"predict: {what}, rank correlation"] = rho
        found |= {f"predict: {what}, low": low, f"predict: {what}, high": high, f"predict: {what}, p": p}
    return found


def answers(engine: Engine, prompts: Sequence[str], recipe: Recipe | None) -> list[str]:
    """Greedy answers of 48 tokens; a full stop where nothing was written."""
    sampling = Sampling(max_tokens=48, repetition_penalty=1.1)
    results = engine.generate([Request(prompt=chat(text), recipe=recipe, sampling=sampling) for text in prompts])
    return [result.text.strip() or "." for result in results]


def losses(engine: Engine, held: dict[str, list[str]], recipe: Recipe | None) -> dict[str, float]:
    """Mean log-probability per token of the held-out texts of each topic."""
    items = [AnswerItem(prompt="Text:", answer=" " + text, recipe=recipe) for texts in held.values() for text in texts]
    means = iter([float(row.mean()) for row in answer_logprobs(engine, items)])
    return {name: statistics.mean(next(means) for _ in texts) for name, texts in held.items()}


def written_topics(engine: Engine, seed: int) -> dict[str, list[str]]:
    """Twenty subjects, twelve short texts each, sampled from the model."""
    asked = [
        (subject, f"Write two sentences about {aspect} in {subject}.") for subject in SUBJECTS for aspect in ASPECTS
    ]
    results = engine.generate(
        [
            Request(
                prompt=chat(text), sampling=Sampling(temperature=0.7, top_p=0.95, max_tokens=60, seed=seed + number)
            )
            for number, (_, text) in enumerate(asked)
        ]
    )
    topics: dict[str, list[str]] = {subject: [] for subject in SUBJECTS}
    for (subject, text), result in zip(asked, results, strict=True):
        topics[subject].append(result.text.strip() or text)
    return topics


def made_topics(seed: int) -> dict[str, list[str]]:
    """Six kinds of text by rule, which a small SAE of English may know less of."""
    made = random.Random(seed)
    words = " ".join(profile_texts()).split()

    def some(n: int) -> list[str]:
        return made.sample(words, n)

    return {
        "hexadecimal": [made.randbytes(24).hex(" ") for _ in ASPECTS],
        "numbers": [", ".join(str(made.randrange(10_000)) for _ in range(16)) for _ in ASPECTS],
        "capitals": [" ".join(some(25)).upper() for _ in ASPECTS],
        "words backwards": [" ".join(word[::-1] for word in some(25)) for _ in ASPECTS],
        "shuffled words": [" ".join(some(30)) for _ in ASPECTS],
        "dates": [
            "; ".join(f"{made.randrange(1, 29)} May {made.randrange(1700, 2020)}" for _ in range(8)) for _ in ASPECTS
        ],
    }


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank."""
    ranks = [
        torch.tensor([sum(a < b for a in row) + (sum(a == b for a in row) - 1) / 2 for b in row])
        for row in (one, other)
    ]
    centred = [row - row.mean() for row in ranks]
    return float((centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm()).clamp(min=1e-9))


def spearman_interval(one: Sequence[float], other: Sequence[float], seed: int) -> tuple[float, float, float, float]:
    """Rank correlation, its bootstrap interval over topics, and the chance of as much under permutation."""
    made, rho, n = random.Random(seed), spearman(one, other), len(one)
    drawn = sorted(
        spearman([one[i] for i in picked], [other[i] for i in picked])
        for picked in (made.choices(range(n), k=n) for _ in range(1000))
    )
    chance = sum(abs(spearman(one, made.sample(list(other), n))) >= abs(rho) - 1e-9 for _ in range(1000))
    return rho, drawn[24], drawn[974], (chance + 1) / 1001


if __name__ == "__main__":
    main()
