"""Measure routing by examples on requests that a route has not seen: seven kinds, 5, 10 and 20 examples, both ways to match.

Each draw shuffles the forty requests of a kind in `routing.jsonl`: the last twenty are held out, the first 5, 10 or 20 become
the route's examples. The threshold is the router's own, chosen on the examples and the 160 general prompts that ship. It is
measured on the held-out requests of the kind, against others that no threshold saw: all requests of the other kinds, everyday
ones, near misses (words of a kind, another wish), and the multiple-choice questions that ship. The general prompts are scored
nowhere. `chosen` is the F1 that the router found on its examples; `at best` that of the threshold that would have been the best
one for the held-out requests. Means over draws with 95 % bootstrap intervals: they tell how much depends on the draw, not how
real users write, for one hand wrote all requests. A decision is timed on one thread. The last line is one JSON object.

    python bench/routing.py [--draws 20]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.auto.prompts import choice_questions, general_prompts, normalised
from steersman.intervals import Interval, bootstrap
from steersman.models.sentence_encoder import SentenceEncoder, load_encoder
from steersman.server.route_table import Rule
from steersman.server.routing import Router
from steersman.steering.methods.thresholds import best_cut, f1_score

REQUESTS = Path(__file__).with_name("routing.jsonl")
NO_KIND = ("everyday", "near misses", "questions")
"""Requests that no route is for; the questions ship."""
MATCHES: tuple[Literal["centroid", "nearest"], ...] = ("centroid", "nearest")
SIZES, HELD_OUT = (5, 10, 20), 20
BANDS = (0.0, 0.5, 0.7, 0.9)
"""Of the F1 on the examples; the router warns below 0.7."""
Cell = tuple[str, Literal["centroid", "nearest"], int]
"""Kind, way to match, number of examples."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one route did in one draw."""

    chosen_f1: float
    """On its examples, as the router found it."""
    precision: float | None
    """None where nothing fired."""
    recall: float
    f1: float
    best_f1: float
    """With the threshold that suits the held-out requests best: what a better choice could gain at most."""
    false_alarms: Mapping[str, float]
    """Share that fired, by what others they are, and of `all`."""


@dataclass(frozen=True)
class Remembering:
    """An encoder that embeds each text once, by itself, as a decision does."""

    inner: SentenceEncoder
    seen: dict[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the encoder behind it."""
        return self.inner.name

    @property
    def width(self) -> int:
        """Of the encoder behind it."""
        return self.inner.width

    @property
    def neutral(self) -> Float[Tensor, " width"]:
        """Of the encoder behind it."""
        return self.inner.neutral

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """As the encoder behind it, from memory where it can."""
        for text in texts:
            if text not in self.seen:
                self.seen[text] = self.inner.encode([text])[0]
        return torch.stack([self.seen[text] for text in texts])


def main() -> None:
    """Measure all kinds and print what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=20, help="of examples and held-out requests")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("steersman").setLevel(logging.ERROR)  # What the router would warn of is counted below.
    requests, encoder = load_requests(), load_encoder()
    remembering, found = Remembering(encoder), defaultdict[Cell, list[Outcome]](list)
    for draw in range(options.draws):
        for cell, outcome in measured(requests, remembering, draw).items():
            found[cell].append(outcome)
    means = {cell: summary(outcomes) for cell, outcomes in found.items()}
    report(means)
    values = overall(found) | foretold(found) | decision_ms(requests, encoder)
    for name, value in values.items():
        print(f"{name:<66}{value:>8.3f}")
    others = sum(map(len, requests.values())) - max(len(requests[kind]) for kind, _, _ in found)
    about = {"bench": "routing", "draws": options.draws, "held_out": HELD_OUT, "others": others}
    table = {
        ", ".join(map(str, cell)): {name: [rounded(v.mean), rounded(v.low), rounded(v.high)] for name, v in row.items()}
        for cell, row in means.items()
    }
    facts = {name: rounded(value) for name, value in values.items()}
    made = {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps(about | table | facts | made))


def rounded(value: float | None) -> float | None:
    """To three places."""
    return None if value is None else round(value, 3)


def load_requests() -> dict[str, list[str]]:
    """Requests by kind, the seven that have routes first; refuses what a threshold has seen and what stands there twice."""
    requests: dict[str, list[str]] = {}
    for line in REQUESTS.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        requests.setdefault(item["kind"], []).append(item["prompt"])
    requests["questions"] = [question.question for question in choice_questions()]
    known = {normalised(text) for text in general_prompts()}
    for text in (text for texts in requests.values() for text in texts):
        if normalised(text) in known:
            raise SystemExit(f"{text!r} is a general prompt, or stands there twice; write another one")
        known.add(normalised(text))
    return requests


def measured(requests: Mapping[str, Sequence[str]], encoder: Remembering, draw: int) -> dict[Cell, Outcome]:
    """Every route of one draw."""
    made = random.Random(draw)
    shuffled = {kind: made.sample(texts, len(texts)) for kind, texts in requests.items() if kind not in NO_KIND}
    cells: list[Cell] = [(kind, match, n) for kind in shuffled for match in MATCHES for n in SIZES]
    router = Router([route(cell, shuffled[cell[0]]) for cell in cells], encoder=lambda: encoder)
    cuts = router.warm()
    scores = {text: router.scores(text) for texts in requests.values() for text in texts}
    # As a server decides: above the threshold, or not.
    fires = {
        text: {name for name, (score, threshold) in each.items() if score > threshold} for text, each in scores.items()
    }
    outcomes = dict[Cell, Outcome]()
    for cell in cells:
        kind, name = cell[0], str(cell)
        own = shuffled[kind][-HELD_OUT:]
        hits = [name in fires[text] for text in own]
        groups = {
            group: [name in fires[text] for text in texts] for group, texts in requests.items() if group in NO_KIND
        }
        groups["other kinds"] = [
            name in fires[text] for other, texts in shuffled.items() if other != kind for text in texts
        ]
        groups["all"] = [fired for fires_of in groups.values() for fired in fires_of]
        alarms = sum(groups["all"])
        rest = [text for other in requests if other != kind for text in requests[other]]
        cosines = [scores[text][name][0] for text in (*own, *rest)]
        outcomes[cell] = Outcome(
            chosen_f1=cuts[name].f1,
            precision=sum(hits) / (sum(hits) + alarms) if sum(hits) + alarms else None,
            recall=fmean(hits),
            f1=f1_score(sum(hits), alarms, len(hits)),
            best_f1=best_cut(cosines, [True] * len(own) + [False] * len(rest)).f1,
            false_alarms={group: fmean(fired) for group, fired in groups.items()},
        )
    return outcomes


def route(cell: Cell, shuffled: Sequence[str]) -> Rule:
    """By the first of the shuffled requests."""
    _, match, n = cell
    return Rule(name=str(cell), recipe="formal", match=match, examples=tuple(shuffled[:n]))


def summary(outcomes: Sequence[Outcome]) -> dict[str, Interval]:
    """Means over draws."""
    return {
        "chosen": bootstrap([one.chosen_f1 for one in outcomes]),
        "f1": bootstrap([one.f1 for one in outcomes]),
        "at best": bootstrap([one.best_f1 for one in outcomes]),
        "precision": bootstrap([one.precision for one in outcomes]),
        "recall": bootstrap([one.recall for one in outcomes]),
        "false alarms": bootstrap([one.false_alarms["all"] for one in outcomes]),
    }


def overall(found: Mapping[Cell, Sequence[Outcome]]) -> dict[str, float]:
    """Over all kinds, by way to match and number of examples: mean F1, and the share of each sort of others that fires."""
    values = dict[str, float]()
    for match in MATCHES:
        for n in SIZES:
            outcomes = [one for (_, *how), each in found.items() if how == [match, n] for one in each]
            about = f"{match}, {n} examples"
            values |= {f"{about}: F1": fmean(one.f1 for one in outcomes)}
            values |= {f"{about}: F1 at best": fmean(one.best_f1 for one in outcomes)}
            for group in outcomes[0].false_alarms:
                values[f"{about}: false alarms, {group}"] = fmean(one.false_alarms[group] for one in outcomes)
    return values


def foretold(found: Mapping[Cell, Sequence[Outcome]]) -> dict[str, float]:
    """What the F1 on the examples says of that on held-out requests: of each band, how many routes fall in it, and the mean."""
    values = dict[str, float]()
    for match in MATCHES:
        outcomes = [one for (_, how, _), each in found.items() if how == match for one in each]
        for low, high in zip(BANDS, (*BANDS[1:], 1.001), strict=True):
            held = [one.f1 for one in outcomes if low <= one.chosen_f1 < high]
            about = f"{match}, F1 on the examples from {low} up to {min(high, 1.0)}"
            values[f"{about}: routes"] = len(held)
            if held:
                values[f"{about}: held-out F1"] = fmean(held)
                values[f"{about}: of them 0.7 or more"] = fmean(one >= 0.7 for one in held)
    return values


def decision_ms(requests: Mapping[str, Sequence[str]], encoder: SentenceEncoder) -> dict[str, float]:
    """Median time of a decision between seven routes of ten examples, over every request, nothing remembered.

    The core's own time is that of a machine that does nothing else.
    """
    rules = [route((kind, "centroid", 10), texts) for kind, texts in requests.items() if kind not in NO_KIND]
    router, walls, cores = Router(rules, choose="best", encoder=lambda: encoder), list[float](), list[float]()
    router.warm()
    for text in (text for texts in requests.values() for text in texts):
        wall, core = time.perf_counter(), time.thread_time()
        router.route(text)
        walls.append((time.perf_counter() - wall) * 1e3)
        cores.append((time.thread_time() - core) * 1e3)
    return {"ms a decision, median": median(walls), "ms of the core a decision, median": median(cores)}


def report(means: Mapping[Cell, Mapping[str, Interval]]) -> None:
    """One line a kind, way to match and number of examples."""
    columns = list(next(iter(means.values())))
    print(f"{'kind':<32}{'match':<10}{'examples':>8}" + "".join(f"{name:>20}" for name in columns))
    for (kind, match, n), row in means.items():
        print(f"{kind:<32}{match:<10}{n:>8}" + "".join(f"{shown(value):>20}" for value in row.values()))


def shown(value: Interval) -> str:
    """Mean and interval; how many draws it rests on where some had none."""
    if value.mean is None:
        return "none"
    interval = "" if value.low is None else f" {value.low:.2f}-{value.high:.2f}"
    return f"{value.mean:.2f}{interval}" + (f" ({value.n})" if value.n < value.total else "")


if __name__ == "__main__":
    main()
