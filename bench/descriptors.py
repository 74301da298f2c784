"""Measure the word scores: texts written to be one of 18 words, all on the same four topics, against plain texts and one another.

Of each word, the area under the ROC curve against plain texts and against texts of the other words, and the share of texts on the
right side of 5 with constants that were fitted without that word. Neither part of the score has learnt from these texts; the two
constants have, so the contrast sets that ship and prompted answers of the model are measured too. Rank agreement is Spearman's,
with the likelihood judge's score of the behaviour, over the prompted answers of the behaviours that have a word. The last line is
one JSON object.

    python bench/descriptors.py [--fit] [--no-prompted] [--tokens 40]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from descriptor_texts import BEHAVIOURS, PLAIN, SETS, TEXTS
from judges import PROMPTS, auc, load_behaviours, write
from steersman.auto.logistic import fit_logistic
from steersman.engine.engine import Engine
from steersman.judges.descriptor import CENTRE, WIDTH, DescriptorJudge
from steersman.judges.facts import Answered
from steersman.judges.likelihood import behaviour_scores
from steersman.models.load import load_model
from steersman.models.sentence_encoder import load_encoder
from steersman.steering.pairs import load_named


def main() -> None:
    """Score all texts for all words, and print what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fit", action="store_true", help="print the constants that the written texts ask for")
    parser.add_argument("--no-prompted", action="store_true", help="leave out prompted answers, which take the longest")
    parser.add_argument("--tokens", type=int, default=40, help="length of prompted answers")
    parser.add_argument(
        "--ask", choices=("system", "twice"), default="twice", help="how prompted answers are asked for"
    )
    options = parser.parse_args()
    engine = Engine(load_model())
    judge, began = DescriptorJudge(engine, load_encoder()), time.perf_counter()
    summary: dict[str, float | int | str] = {
        "bench": "descriptors",
        **written(judge, options.fit),
        **contrast_sets(judge),
    }
    if not options.no_prompted:
        summary |= prompted(judge, options)
    summary |= {"seconds": time.perf_counter() - began, "threads": torch.get_num_threads()}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in summary.items()}
    print(json.dumps(rounded | {"torch": torch.__version__, "machine": platform.machine()}))


def written(judge: DescriptorJudge, fit: bool) -> dict[str, float | int]:
    """The texts above: areas by part of the score, and the side of 5 with constants fitted on the other words."""
    texts = [text for written_so in TEXTS.values() for text in written_so] + list(PLAIN)
    found = judge.score(texts, list(TEXTS))
    parts = {
        "likelihood": torch.tensor([[each.likelihood for each in row] for row in found], dtype=torch.float64),
        "meaning": torch.tensor([[each.meaning for each in row] for row in found], dtype=torch.float64),
    }
    parts["both"] = parts["likelihood"] + parts["meaning"]
    # Which word each text was written for; the plain ones stand behind.
    word_of = [number for number, written_so in enumerate(TEXTS.values()) for _ in written_so] + [-1] * len(PLAIN)
    owners = torch.tensor(word_of)
    rows: dict[str, dict[str, float]] = {}
    for at, word in enumerate(TEXTS):
        own, plain = owners == at, owners == -1
        row = rows[word] = {}
        for name, values in parts.items():
            column = values[:, at]
            row[f"{name}, plain"] = auc(column[own].tolist(), column[plain].tolist())
            row[f"{name}, others"] = auc(column[own].tolist(), column[~own & ~plain].tolist())
        centre, _ = boundary(parts["both"], owners, [number for number in range(len(TEXTS)) if number != at])
        right = torch.where(own, parts["both"][:, at] > centre, parts["both"][:, at] < centre).double()
        row["right side"] = float(right[own].mean() + right[plain].mean() / 2 + right[~own & ~plain].mean() / 2) / 2
    means = report(rows)
    if fit:
        centre, width = boundary(parts["both"], owners, range(len(TEXTS)))
        print(f"CENTRE, WIDTH = {centre:.3f}, {width:.3f} (in use: {CENTRE}, {WIDTH})")
    return {"words": len(TEXTS), **{f"written {name}": value for name, value in means.items()}}


def boundary(values: Tensor, owners: Tensor, words: Sequence[int]) -> tuple[float, float]:
    """Centre and width of a logistic regression over some words: own texts weigh as much as plain and other ones together.

    Args:
        values: sum of both parts, (texts, words).
        owners: number of the word that each text was written for; -1: plain.
        words: numbers of the words to learn from.
    """
    plain, own, other = [], [], []
    for at in words:
        column = values[:, at]
        own.append(column[owners == at])
        plain.append(column[owners == -1])
        other.append(column[(owners != at) & (owners != -1)])
    high, few, many = torch.cat(own), torch.cat(plain), torch.cat(other)
    # Repeated to about equal numbers, as the regression weighs the sides alone.
    few = few.repeat(max(1, round(len(many) / len(few))))
    x = torch.cat([high, few, many])
    y = torch.arange(len(x)) < len(high)
    cost = (len(few) + len(many)) / len(high)
    found = fit_logistic(x[:, None], y, positive_cost=cost, ridge=1e-6)
    slope = float(found.weights[0])
    return -found.bias / slope, 1 / slope


def contrast_sets(judge: DescriptorJudge) -> dict[str, float]:
    """Texts with the behaviour against plain answers, and against those of the other sets: nothing was fitted on them."""
    items: list[Answered] = []
    sides: list[tuple[str, bool]] = []
    for name in SETS:
        for pair in load_named(name)[::3]:
            for shown, chat in ((True, pair.positive), (False, pair.negative)):
                assert not isinstance(chat, str)
                items.append(Answered(str(chat[0]["content"]), str(chat[-1]["content"])))
                sides.append((name, shown))
    found = judge.score(items, list(SETS.values()))
    rows: dict[str, dict[str, float]] = {}
    for at, name in enumerate(SETS):
        column = [row[at].score for row in found]
        own, plain = (
            [value for value, side in zip(column, sides, strict=True) if side == (name, is_own)]
            for is_own in (True, False)
        )
        others = [value for value, (of, shown) in zip(column, sides, strict=True) if shown and of != name]
        rows[name] = {"plain": auc(own, plain), "others": auc(own, others)}
        rows[name]["right side"] = (fmean(value > 5 for value in own) + fmean(value < 5 for value in plain)) / 2
    return {f"contrast sets {name}": value for name, value in report(rows).items()}


def prompted(judge: DescriptorJudge, options: argparse.Namespace) -> dict[str, float]:
    """Answers of the model told to behave, against plain ones and those of other behaviours, and beside the likelihood judge."""
    described = {name: text for name, text in load_behaviours().items() if name in BEHAVIOURS}
    answers = write(judge.engine, described, PROMPTS, options)
    names = list(described)
    kinds: list[str | None] = [None, *names]
    flat = [
        (kind, Answered(prompt, text)) for kind in kinds for prompt, text in zip(PROMPTS, answers[kind], strict=True)
    ]
    flat = [(kind, item) for kind, item in flat if item.answer.strip()]
    items = [item for _, item in flat]
    found = judge.score(items, [BEHAVIOURS[name] for name in names])
    rows: dict[str, dict[str, float]] = {}
    for at, name in enumerate(names):
        column = [row[at].score for row in found]
        sides: dict[str | None, list[float]] = {}
        for value, (kind, _) in zip(column, flat, strict=True):
            sides.setdefault(kind, []).append(value)
        own, plain = sides.pop(name), sides.pop(None)
        others = [value for values in sides.values() for value in values]
        rows[name] = {"plain": auc(own, plain), "others": auc(own, others)}
        rows[name]["rank agreement"] = spearman(column, behaviour_scores(judge.engine, described[name], items))
    return {f"prompted {name}": value for name, value in report(rows).items()}


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank."""
    ranks = torch.stack([ranked(one), ranked(other)])
    return float(torch.corrcoef(ranks)[0, 1])


def ranked(values: Sequence[float]) -> Tensor:
    column = torch.tensor(values, dtype=torch.float64)
    return ((column[:, None] > column).double() + (column[:, None] == column).double() / 2).sum(1)


def report(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """One line a row, the means last; returns the means."""
    columns = list(next(iter(rows.values())))
    means = {column: fmean(row[column] for row in rows.values()) for column in columns}
    print(f"{'':<20}" + "".join(f"{column:>20}" for column in columns))
    for name, row in {**rows, "mean": means}.items():
        print(f"{name:<20}" + "".join(f"{row[column]:>20.3f}" for column in columns))
    return means


if __name__ == "__main__":
    main()
