"""The prompts and questions that ship: to tune on, to prove on, and to test what steering costs. Knows nothing of models."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from steersman.engine.likelihood import ChoiceQuestion
from steersman.errors import DataError
from steersman.facts import fact

_WORDS = re.compile(r"\w+")


@fact
class Prompts:
    """Three sets of user prompts that share none."""

    train: tuple[str, ...]
    """What weights are found on."""
    validation: tuple[str, ...]
    """What the strength is chosen on."""
    test: tuple[str, ...]
    """What the proof rests on; used nowhere before."""


def general_prompts() -> tuple[str, ...]:
    """160 user prompts on many things that let any style show: explain, advise, describe, tell, compare, write."""
    return tuple(str(item["prompt"]) for item in shipped("general"))


def choice_questions() -> tuple[ChoiceQuestion, ...]:
    """120 four-way questions of easy general knowledge and common sense; right answers stand equally often in each place."""
    return tuple(
        ChoiceQuestion(question=item["question"], choices=tuple(item["choices"]), answer_index=item["answer"])
        for item in shipped("choices")
    )


def split_prompts(seed: int, train: int, validation: int, test: int, prompts: Sequence[str] | None = None) -> Prompts:
    """Prompts at random for each purpose, no two of them alike in wording.

    The three sizes draw from one order: with the same seed, the test prompts stay the same whatever `train` and `validation`
    are, as long as there are enough.

    Args:
        seed: of the order.
        train: how many to find weights on.
        validation: how many to choose the strength on.
        test: how many to prove on.
        prompts: the user's own; by default the general ones that ship.

    Raises:
        DataError: a size below 0, an empty prompt, or fewer different prompts than asked for.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for name, size in sizes.items():
        if size < 0:
            raise DataError(f"{name} must be 0 prompts or more, not {size}")
    different = distinct_prompts(general_prompts() if prompts is None else prompts)
    wanted = sum(sizes.values())
    if len(different) < wanted:
        parts = " + ".join(f"{size} {name}" for name, size in sizes.items())
        raise DataError(
            f"there are {len(different)} different prompts, but {wanted} are wanted ({parts}); give more, or ask for fewer"
        )
    order = random.Random(seed).sample(different, len(different))
    tested, rest = order[:test], order[test:]
    return Prompts(train=tuple(rest[:train]), validation=tuple(rest[train : train + validation]), test=tuple(tested))


def distinct_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts in their order, without those that say the same in the same words.

    Raises:
        DataError: one is empty.
    """
    found: dict[str, str] = {}
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise DataError(f"prompt {number} is empty; leave it out or write something for the model to answer")
        found.setdefault(normalised(prompt), prompt.strip())
    return list(found.values())


def normalised(text: str) -> str:
    """The words alone, in lower case: texts that differ in case, spacing or punctuation become one. Text without a word stays."""
    return " ".join(_WORDS.findall(text.lower())) or text.strip()


def shipped(name: str) -> Iterator[dict[str, Any]]:
    """The objects of a file of prompts that ships."""
    entry = resources.files("steersman") / "data" / "prompts" / f"{name}.jsonl"
    return (json.loads(line) for line in entry.read_text(encoding="utf-8").split("\n") if line.strip())
