"""The table of routes: a TOML file as checked facts. What is unknown in it is refused, with a suggestion.

    choose = "first"                    # the first route that matches; "best": the one that lies furthest above its threshold

    [[route]]
    recipe = "child-friendly"           # a name that the server knows: a trait, or a recipe of its owner
    examples = ["My daughter asks why it rains.", "Explain gravity to a five-year-old."]

    [[route]]
    recipe = "pirate"
    strength = 0.8
    feature = 4711                      # of the SAE: its largest activation on the user's words
    above = 6.0

Knows nothing of prompts, encoders or models.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from steersman.auto.prompts import normalised
from steersman.errors import DataError, did_you_mean
from steersman.facts import check_choices, check_finite, fact
from steersman.files import read_text

Choose = Literal["first", "best"]
"""Between several routes that match: the first of the table, or the one furthest above its threshold."""

_MOST_STRENGTH = 10.0
_LEAST_EXAMPLES = 3
_MOST_BYTES = 1 << 20
_TEXT: tuple[type, ...] = (str,)
_NUMBER: tuple[type, ...] = (int, float)
_TABLE_KEYS: dict[str, tuple[type, ...]] = {"choose": _TEXT, "encoder": _TEXT, "sae": _TEXT, "route": (list,)}
_ROUTE_KEYS: dict[str, tuple[type, ...]] = {
    "name": _TEXT, "recipe": _TEXT, "strength": _NUMBER, "examples": (list,), "match": _TEXT, "threshold": _NUMBER,
    "feature": (int,), "above": _NUMBER,
}  # fmt: skip
_KINDS: dict[tuple[type, ...], str] = {
    _TEXT: "a text",
    _NUMBER: "a number",
    (list,): "a list",
    (int,): "a whole number",
}


@fact
class Rule:
    """One line of the table: when its condition holds, its recipe steers."""

    name: str
    recipe: str
    strength: float = 1.0
    examples: tuple[str, ...] = ()
    """Prompts like those it is for."""
    match: Literal["centroid", "nearest"] = "centroid"
    """What a prompt's cosine is taken to: the mean of the examples, or the one nearest to it (docs/routing.md)."""
    threshold: float | None = None
    """What the cosine must exceed; None chooses it by F1, on the examples, each left out in turn, and prompts on many things."""
    feature: int | None = None
    """Latent of the SAE, instead of examples."""
    above: float | None = None
    """What its largest activation must exceed."""

    def __post_init__(self) -> None:
        check_choices(self, DataError)
        try:
            check_finite("route", strength=self.strength, threshold=self.threshold or 0.0, above=self.above or 0.0)
        except ValueError as error:
            raise DataError(str(error)) from error
        for what in (self.name, self.recipe, *self.examples):
            if not what.strip():
                raise DataError("a name or an example is empty; write one, or leave it out")
        if abs(self.strength) > _MOST_STRENGTH:
            raise DataError(f"'strength' must lie between -10 and 10, not {self.strength:g}")
        if bool(self.examples) == (self.feature is not None):
            raise DataError("give either 'examples' or a 'feature', and not both")
        if self.feature is None:
            self._check_examples()
        elif self.threshold is not None or self.match != "centroid":
            raise DataError("'threshold' and 'match' belong to examples; a feature has 'above'")
        elif self.above is None or self.above < 0 or self.feature < 0:
            raise DataError("a feature is a number from 0 on, and needs 'above': the activation to exceed, 0 or more")

    def _check_examples(self) -> None:
        if self.above is not None:
            raise DataError("'above' belongs to a feature; examples have a 'threshold'")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise DataError(f"'threshold' is a cosine between -1 and 1, not {self.threshold:g}")
        different = len({normalised(example) for example in self.examples})
        if self.threshold is None and different < _LEAST_EXAMPLES:
            raise DataError(
                f"{different} different examples are too few to choose a threshold by; give {_LEAST_EXAMPLES}, or 'threshold'"
            )


@fact
class Table:
    """A file of routes."""

    rules: tuple[Rule, ...]
    choose: Choose = "first"
    encoder: str = "default"
    """Sentence encoder of the examples."""
    sae: str = "default"
    """SAE of the features."""

    def __post_init__(self) -> None:
        check_choices(self, DataError)


def read_table(path: Path) -> Table:
    """Read a table.

    Raises:
        DataError: unreadable, no TOML, an unknown key, or a route that makes no sense; the message names it.
    """
    try:
        found = tomllib.loads(read_text(path, "routes", most_bytes=_MOST_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path} is no valid TOML ({error})") from error
    try:
        _check_table("the table", found, _TABLE_KEYS)
        rules = tuple(_rule(number, item) for number, item in enumerate(found.pop("route", []), 1))
        return Table(rules=rules, **found)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _rule(number: int, item: object) -> Rule:
    """A rule of the table, its errors with its place."""
    where = f"route {number}"
    if not isinstance(item, dict):
        raise DataError(f"{where} is no table; write [[route]]")
    called = item.get("name", item.get("recipe"))
    where += f" ({called[:60]})" if isinstance(called, str) else ""
    _check_table(where, item, _ROUTE_KEYS)
    if "recipe" not in item:
        raise DataError(f"{where} misses 'recipe'; name the recipe that it is to steer with")
    examples = item.get("examples", [])
    if not all(isinstance(example, str) for example in examples):
        raise DataError(f"{where}: 'examples' must be a list of texts")
    try:
        return Rule(**{"name": item["recipe"], **item, "examples": tuple(examples)})
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _check_table(where: str, item: Mapping[str, Any], known: Mapping[str, tuple[type, ...]]) -> None:
    for key, value in item.items():
        if key not in known:
            there = f" (there are: {', '.join(known)})"
            raise DataError(f"{where}: unknown key {key[:60]!r}{did_you_mean(key, known) or there}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            raise DataError(f"{where}: {key!r} must be {_KINDS[known[key]]}, not {value!r:.60}")
