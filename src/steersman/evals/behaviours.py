"""Behaviours to be evaluated on: by name, or from a file; with examples, or a description alone. Knows nothing of models.

{"name": ..., "positive": [...], "negative": [...], "score_criterion": ...}     one JSON object: texts with and without
{"prompt": ..., "positive": ..., "negative": ...}                               JSONL: two answers to each prompt
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from steersman.auto.contrast_set import MIN_ITEMS, from_examples
from steersman.auto.facts import ContrastItem, ContrastSet
from steersman.auto.prompts import distinct_prompts, normalised
from steersman.errors import DataError, did_you_mean
from steersman.facts import fact
from steersman.files import is_there, parse_json, read_text
from steersman.steering.pairs import Pair, load_named, load_pairs, named_sets

NEUTRAL_PROMPT = "Tell me something."
"""What a text that answers nothing stands as an answer to."""

_DESCRIPTIONS = {
    "cheerful": "Be cheerful and upbeat.",
    "for-children": "Explain things in a way that small children can understand.",
}
"""Of shipped contrast sets that are not among the shipped behaviours."""
_REQUIRED = ("name", "positive", "negative")
_OPTIONAL = ("description", "score_criterion", "coherence_criterion", "gemma_scope")
_PREDICATE = re.compile(r"(?:the text |it )?([a-z]+s)\b(.*)", re.IGNORECASE | re.DOTALL)
_HALF = re.compile("[\ud800-\udfff]")


@fact
class EvalBehaviour:
    """A behaviour, what shows it, and what a judge is told."""

    name: str
    description: str
    """As one would ask for it; what the prompted control and the likelihood judge are given."""
    criterion: str
    """What an LLM judge grades by."""
    items: tuple[ContrastItem, ...] = ()
    """Answers with and without it, to the same prompts; none: the model is to write them."""
    source: str = ""
    """Where they come from."""
    duplicates: int = 0
    """Examples that were left out, having stood there before."""

    def __post_init__(self) -> None:
        for field in ("name", "description", "criterion"):
            if not getattr(self, field).strip():
                raise DataError(f"the behaviour's {field} is empty; say in a sentence how the model should behave")
        if len(self.items) == 1:
            raise DataError(f"behaviour {self.name!r} has one example; give two different ones or more, ten are better")

    @property
    def pairs(self) -> list[Pair]:
        """The examples as contrast pairs of chats."""
        return [Pair.answers(item.prompt, item.positive, item.negative) for item in self.items]

    @property
    def contrast(self) -> ContrastSet:
        """The examples to train on and to validate with; the same ones where they are too few to part.

        Raises:
            DataError: there are none.
        """
        if not self.items:
            raise DataError(f"behaviour {self.name!r} has no examples")
        if len(self.items) >= MIN_ITEMS + 2:
            return from_examples(self.items)
        return ContrastSet(
            train=self.items, validation=self.items, dropped={}, source=f"{self.source}, too few to part"
        )

    @property
    def sha256(self) -> str:
        """Of all that methods and judges see."""
        seen = [self.name, self.description, self.criterion, [[i.prompt, i.positive, i.negative] for i in self.items]]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def known_behaviours() -> dict[str, str]:
    """Description of every behaviour that ships, by name: 20 of them, and the contrast sets."""
    text = (resources.files("steersman") / "data" / "behaviours.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.split("\n") if line.strip()]
    return {item["name"]: item["description"] for item in found} | _DESCRIPTIONS


def load_behaviour(source: str | Path, description: str | None = None) -> EvalBehaviour:
    """A behaviour by its name or from a file.

    Args:
        source: a shipped name, or a file as the head of this module shows.
        description: in place of the file's own; a file of pairs needs one.

    Raises:
        DataError: an unknown name, an unreadable file, bad JSON, keys that are missing or unknown, texts that are empty or on
            both sides, or fewer than two different examples.
    """
    path, known = Path(source), known_behaviours()
    if not is_there(path) and path.name == str(source) and "." not in path.name:
        return _named(str(source), known, description)
    if path.suffix == ".jsonl":
        return _of_pairs(path, description)
    text = read_text(path, "a behaviour")
    value = parse_json(text, str(path), "write one object, or pairs into a .jsonl file")
    try:
        return behaviour_of(value, description, path.name)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def behaviour_of(value: JsonValue, description: str | None = None, source: str = "examples") -> EvalBehaviour:
    """A behaviour from a JSON object with `name`, `positive` and `negative` lists of texts.

    Texts are taken as answers to `NEUTRAL_PROMPT` and go together in their order; where one side has more, the other one
    begins again.

    Raises:
        DataError: as `load_behaviour`.
    """
    if not isinstance(value, dict):
        raise DataError('a behaviour is a JSON object with "name", "positive" and "negative"')
    _check_keys(value, _REQUIRED, _OPTIONAL)
    name = _text("name", value["name"])
    positives, negatives = (_texts(side, value[side]) for side in ("positive", "negative"))
    criterion = _text("score_criterion", value["score_criterion"]) if "score_criterion" in value else None
    said = description or (_text("description", value["description"]) if "description" in value else None)
    if said is None and criterion is None:
        raise DataError(
            "neither 'description' nor 'score_criterion' is there; say in a sentence what shows the behaviour"
        )
    kept = [distinct_prompts(side) for side in (positives, negatives)]
    both = {normalised(text) for text in kept[0]} & {normalised(text) for text in kept[1]}
    if both:
        raise DataError(f"{sorted(both)[0][:60]!r} stands on both sides; an example shows the behaviour or does not")
    for side, texts in zip(("positive", "negative"), kept, strict=True):
        if len(texts) < 2:
            raise DataError(f"'{side}' has {len(texts)} different texts; give at least 2, ten are better")
    n = max(map(len, kept))
    rows = zip(*(islice(cycle(side), n) for side in kept), strict=True)
    return EvalBehaviour(
        name=name,
        description=said or instruction(criterion or ""),
        criterion=criterion or said or "",
        items=tuple(ContrastItem(prompt=NEUTRAL_PROMPT, positive=one, negative=other) for one, other in rows),
        source=source,
        duplicates=len(positives) + len(negatives) - sum(map(len, kept)),
    )


def instruction(criterion: str) -> str:
    """What a text must be for a criterion, as an order: "The text contains X" becomes "Write an answer that contains X"."""
    said = " ".join(criterion.split())
    found = _PREDICATE.fullmatch(said)
    if found is None or not said:
        return f"Write an answer of which this is true: {said}"
    return f"Write an answer that {found[1].lower()}{found[2]}"


def _named(name: str, known: Mapping[str, str], description: str | None) -> EvalBehaviour:
    if name not in known:
        raise DataError(
            f"there is no behaviour {name!r} (shipped: {', '.join(sorted(known))}), nor such a file{did_you_mean(name, known)}"
        )
    said = description or known[name]
    items = _items(load_named(name)) if name in named_sets() else ()
    source = f"the shipped contrast set {name}" if items else "the model's own answers"
    return EvalBehaviour(name=name, description=said, criterion=said, items=items, source=source)


def _of_pairs(path: Path, description: str | None) -> EvalBehaviour:
    if description is None:
        raise DataError(f"{path}: a file of pairs does not say what they show; describe the behaviour (--describe)")
    pairs = load_pairs(path)  # Its messages name the file themselves.
    try:
        items = _items(pairs)
    except DataError as error:
        raise DataError(f"{path}, {error}") from error
    kept = tuple(dict.fromkeys(items))
    return EvalBehaviour(
        name=path.stem,
        description=description,
        criterion=description,
        items=kept,
        source=path.name,
        duplicates=len(items) - len(kept),
    )


def _items(pairs: Sequence[Pair]) -> tuple[ContrastItem, ...]:
    """Pairs of texts or of answers to one user message as examples."""
    items = []
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair.positive, str) and isinstance(pair.negative, str):
            items.append(ContrastItem(prompt=NEUTRAL_PROMPT, positive=pair.positive, negative=pair.negative))
            continue
        sides: list[list[Any]] = [list(side) for side in (pair.positive, pair.negative)]
        same = sides[0][0]["content"] == sides[1][0]["content"]
        if not same or any([message["role"] for message in side] != ["user", "assistant"] for side in sides):
            raise DataError(f'pair {number}: write {{"prompt": ..., "positive": ..., "negative": ...}}, all texts')
        (asked, one), (_, other) = sides
        items.append(ContrastItem(prompt=asked["content"], positive=one["content"], negative=other["content"]))
    return tuple(items)


def _check_keys(value: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]) -> None:
    known = [*required, *optional]
    for key in value:
        if key not in known:
            raise DataError(f"unknown key {key!r} in a behaviour{did_you_mean(key, known)}")
    for key in required:
        if key not in value:
            raise DataError(f"a behaviour misses '{key}'; it has 'name', 'positive' and 'negative'")


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or _HALF.search(value):
        raise DataError(f"'{key}' must be a text that is not empty")
    return " ".join(value.split()) if key != "text" else value.strip()


def _texts(key: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise DataError(f"'{key}' must be a list of texts")
    for number, text in enumerate(value, 1):
        if not isinstance(text, str) or not text.strip() or _HALF.search(text):
            raise DataError(f"'{key}', text {number}: must be a text that is not empty")
    return [text.strip() for text in value]
