"""Measure the local judges on known pairs: answers of the bundled model told to behave in 20 ways, against its plain answers.

Of each behaviour, the area under the ROC curve: prompted against plain answers, and against prompted answers of other behaviours.
The judges ask for the behaviour in other words than the answers were made with. `--ask system` puts the description alone into
the system prompt, which this small model often ignores; `--ask twice` repeats it behind the question, so that more answers show
it. The same is measured on the contrast sets that ship, whose texts no model was asked for. Coherence is measured on sensible
answers against the same ones shuffled, looped, or given to another prompt. The last line is one JSON object.

    python bench/judges.py [--ask system|twice] [--tokens 40] [--show] [--fit]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from statistics import fmean, median, quantiles

import torch

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.judges.coherence import coherences
from steersman.judges.embedding import EmbeddingJudge
from steersman.judges.facts import Answered, Judge
from steersman.judges.likelihood import CENTRE, WIDTH
from steersman.judges.local import LocalJudge
from steersman.models.language_model import chat
from steersman.models.load import load_model
from steersman.models.sentence_encoder import TextEncoder, load_encoder
from steersman.steering.pairs import load_named

EXAMPLE_PROMPTS = (
    "What is the internet?",
    "How do bees make honey?",
    "Tell me about the city of Rome.",
    "What should I do on a rainy day?",
    "Why do people need sleep?",
    "Describe a walk through a forest.",
    "How does a bicycle stay upright?",
    "What makes a good friend?",
)
"""What the embedding judge's examples answer."""
PROMPTS = (
    "Why is the sky blue?",
    "What is money?",
    "How do airplanes fly?",
    "Tell me about your favourite animal.",
    "How can I learn to play the guitar?",
    "What happens when it snows?",
    "Describe a busy market in the morning.",
    "Why do we have to go to school?",
)
"""What is judged."""
SETS = {
    "pirate": "Talk like a pirate.",
    "formal": "Write in a formal and official style.",
    "cheerful": "Be cheerful and upbeat.",
    "for-children": "Explain things in a way that small children can understand.",
}
"""Contrast sets that ship, and what they show."""
Answers = Mapping[str | None, list[str]]
"""Answers to one list of prompts, by behaviour; None for plain ones."""


def main() -> None:
    """Write the answers, judge them, and print what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ask", choices=("system", "twice"), default="system", help="how answers are asked for")
    parser.add_argument("--tokens", type=int, default=40, help="length of the answers")
    parser.add_argument("--show", action="store_true", help="print the first answers of each behaviour, to be read")
    parser.add_argument("--fit", action="store_true", help="print the constants that map log-ratios to [0, 1]")
    options = parser.parse_args()
    engine, encoder = Engine(load_model()), load_encoder()
    behaviours = load_behaviours()
    examples = write(engine, behaviours, EXAMPLE_PROMPTS, options)
    answers = write(engine, behaviours, PROMPTS, options)
    local = LocalJudge(engine, encoder)
    judges: dict[str, dict[str, Judge]] = {
        name: {
            "likelihood": local,
            "embedding": EmbeddingJudge(encoder, examples[name], examples[None]),
            "description": EmbeddingJudge(encoder),
        }
        for name in behaviours
    }
    began = time.perf_counter()
    table = {name: measured(judges[name], behaviours[name], name, answers) for name in behaviours}
    judging_s = time.perf_counter() - began
    means = {column: fmean(row[column] for row in table.values()) for column in next(iter(table.values()))}
    report(table, means)
    if options.show:
        show(behaviours, answers)
    if options.fit:
        fit(local, behaviours, answers)
    sets = contrast_set_aucs(local, encoder)
    for kind, value in sets.items():
        print(f"contrast sets, {kind:<39}{value:>7.3f}")
    broken = coherence_aucs(engine, encoder, answers)
    for kind, value in broken.items():
        print(f"coherence, intact against {kind:<28}{value:>7.3f}")
    summary = {
        "bench": "judges",
        "ask": options.ask,
        "tokens": options.tokens,
        "behaviours": len(table),
        "judging_s": judging_s,
    }
    summary |= {f"auc {name}": value for name, value in means.items()}
    summary |= {f"contrast sets auc {name}": value for name, value in sets.items()}
    summary |= {f"coherence auc {name}": value for name, value in broken.items()}
    summary |= {
        "twelve_answers_s": seconds_for_twelve(LocalJudge(engine, encoder), answers),
        "threads": torch.get_num_threads(),
    }
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in summary.items()}
    print(json.dumps(rounded | {"torch": torch.__version__, "machine": platform.machine()}))


def load_behaviours() -> dict[str, str]:
    """Name and description of the behaviours that ship."""
    entry = resources.files("steersman") / "data" / "behaviours.jsonl"
    items = [json.loads(line) for line in entry.read_text(encoding="utf-8").splitlines()]
    return {item["name"]: item["description"] for item in items}


def write(
    engine: Engine, behaviours: Mapping[str, str], prompts: Sequence[str], options: argparse.Namespace
) -> Answers:
    """Greedy answers to all prompts, plain and with each description as the system prompt, alone or with more."""
    sampling = Sampling(max_tokens=options.tokens, repetition_penalty=1.1)
    chats = [chat(prompt) for prompt in prompts]
    for said in behaviours.values():
        for prompt in prompts:
            twice = chat(f"{prompt} {said}", f"{said} Always answer like this, whatever you are asked.")
            chats.append(twice if options.ask == "twice" else chat(prompt, said))
    texts = iter(
        [result.text for result in engine.generate([Request(prompt=each, sampling=sampling) for each in chats])]
    )
    names: list[str | None] = [None, *behaviours]
    return {name: [next(texts) for _ in prompts] for name in names}


def measured(judges: Mapping[str, Judge], behaviour: str, name: str, answers: Answers) -> dict[str, float]:
    """Areas under the curve of one behaviour: each judge, against plain answers and against those of other behaviours."""
    names = [other for other in answers if other is not None]
    at = names.index(name)
    mixed = [answers[names[(at + 1 + 7 * number) % len(names)]][number] for number in range(len(PROMPTS))]
    sides = [*answers[name], *answers[None], *mixed]
    items = [Answered(prompt, text) for prompt, text in zip(PROMPTS * 3, sides, strict=True)]
    n, row = len(PROMPTS), {}
    for kind, judge in judges.items():
        scores = [verdict.behaviour or 0.0 for verdict in judge.judge(behaviour, items)]
        row[f"{kind}, plain"] = auc(scores[:n], scores[n : 2 * n])
        row[f"{kind}, others"] = auc(scores[:n], scores[2 * n :])
    return row


def auc(high: Sequence[float], low: Sequence[float]) -> float:
    """Share of pairs in which the first is higher; ties count half (Mann and Whitney 1947)."""
    return fmean((one > other) + (one == other) / 2 for one in high for other in low)


def contrast_set_aucs(local: Judge, encoder: TextEncoder) -> dict[str, float]:
    """Mean areas over the sets that ship: texts with the behaviour against plain ones, and against those of other sets."""
    sides = {
        name: [
            (str(pair.positive[0]["content"]), *(str(side[-1]["content"]) for side in (pair.positive, pair.negative)))
            for pair in load_named(name)
            if not isinstance(pair.positive, str) and not isinstance(pair.negative, str)
        ]
        for name in SETS
    }
    found: dict[str, list[float]] = {}
    for name, behaviour in SETS.items():
        tests = sides[name][:8]
        items = [Answered(prompt, shown) for prompt, shown, _ in tests]
        items += [Answered(prompt, plain) for prompt, _, plain in tests]
        items += [Answered(prompt, shown) for other in SETS if other != name for prompt, shown, _ in sides[other][:8]]
        examples = [shown for _, shown, _ in sides[name][8:]], [plain for _, _, plain in sides[name][8:]]
        for kind, judge in {"likelihood": local, "embedding": EmbeddingJudge(encoder, *examples)}.items():
            scores = [verdict.behaviour or 0.0 for verdict in judge.judge(behaviour, items)]
            n = len(tests)
            found.setdefault(f"{kind}, plain", []).append(auc(scores[:n], scores[n : 2 * n]))
            found.setdefault(f"{kind}, others", []).append(auc(scores[:n], scores[2 * n :]))
    return {kind: fmean(values) for kind, values in found.items()}


def coherence_aucs(engine: Engine, encoder: TextEncoder, answers: Answers) -> dict[str, float]:
    """Coherence of prompted answers against the same ones spoiled in three ways."""
    made = random.Random(0)
    names = [name for name in answers if name is not None]
    intact = [(number % len(PROMPTS), answers[name][number % len(PROMPTS)]) for number, name in enumerate(names)]
    intact += [(number, text) for number, text in enumerate(answers[None])]
    spoiled = {
        "word-shuffled": [(at, shuffled(text, made)) for at, text in intact],
        "looped": [(at, looped(text)) for at, text in intact],
        "another prompt's answer": [((at + 3) % len(PROMPTS), text) for at, text in intact],
    }
    scores = {
        kind: [
            whole.score for whole in coherences(engine, encoder, [Answered(PROMPTS[at], text) for at, text in pairs])
        ]
        for kind, pairs in {"intact": intact, **spoiled}.items()
    }
    for kind, values in scores.items():
        print(f"mean coherence, {kind:<38}{fmean(values):>7.3f}")
    return {kind: auc(scores["intact"], scores[kind]) for kind in spoiled}


def shuffled(text: str, made: random.Random) -> str:
    """The words in random order."""
    words = text.split()
    made.shuffle(words)
    return " ".join(words)


def looped(text: str) -> str:
    """The first six words over and over."""
    words = text.split()
    return " ".join((words[:6] * len(words))[: len(words)])


def seconds_for_twelve(judge: Judge, answers: Answers) -> float:
    """How long a judge that has seen none of them takes for 12 answers."""
    some = [Answered(PROMPTS[number % 8], answers[name][number % 8]) for number, name in enumerate(list(answers)[:12])]
    began = time.perf_counter()
    judge.judge("Talk like a pirate.", some)
    return time.perf_counter() - began


def fit(judge: Judge, behaviours: Mapping[str, str], answers: Answers) -> None:
    """The constants that let the median of plain answers score 0.1, and the clearest tenth of prompted ones 0.95."""
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for name, behaviour in behaviours.items():
        for told, texts in ((True, answers[name]), (False, answers[None])):
            items = [Answered(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=True) if text.strip()]
            scores = [verdict.behaviour or 0.5 for verdict in judge.judge(behaviour, items)]
            ratios[told] += [CENTRE + WIDTH * math.log(score / (1 - score)) for score in scores]
    low, high = median(ratios[False]), quantiles(ratios[True], n=10)[-1]
    least, most = math.log(0.1 / 0.9), math.log(0.95 / 0.05)
    width = (high - low) / (most - least)
    print(f"median log-ratio of plain answers {low:.3f}, ninth decile of prompted ones {high:.3f}")
    print(f"CENTRE, WIDTH = {low - width * least:.3f}, {width:.3f}")


def report(table: Mapping[str, Mapping[str, float]], means: Mapping[str, float]) -> None:
    """One line a behaviour."""
    print(f"{'area under the curve':<20}" + "".join(f"{column:>21}" for column in means))
    for name, row in {**table, "mean": means}.items():
        print(f"{name:<20}" + "".join(f"{value:>21.3f}" for value in row.values()))


def show(behaviours: Mapping[str, str], answers: Answers) -> None:
    """Answers to the first two prompts, to be read by a person."""
    for name in (None, *behaviours):
        for number in range(2):
            print(f"[{name or 'plain'}] {' '.join(answers[name][number].split())}")


if __name__ == "__main__":
    main()
