"""What an experiment compares, read from a TOML file, and the single runs that it comes to. Knows nothing of how one is done.

behaviours = ["talk like a pirate", "explain things in a way that children can understand"]
scorers = ["critique", "outputs"]         # variants of textgrad's scorer
judge_prompts = ["rubric", "strict"]      # of the LLM judge; left out: the local judge
features = [5, 10]
epochs = [10]
seeds = [0, 1, 2]

[optimisers.textgrad]                     # settings; none are needed
[optimisers.careful]
method = "textgrad"
max_strength = 0.4
[optimisers.both]
method = "bayes+textgrad"
bayes = { trials = 20 }

[examples]                                # of some behaviours; the model answers for the others
"talk like a pirate" = "pirate"           # a set that ships, or a file of pairs
[sizes]                                   # of `AutoSettings`: how much each run does
test = 16
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from steersman.auto.autosteer import AutoSettings
from steersman.auto.facts import Behaviour
from steersman.auto.optimise import make_optimiser, parts_of, settings_of
from steersman.auto.optimise.textgrad import SCORERS
from steersman.auto.task import Optimiser
from steersman.errors import DataError, SteersmanError, did_you_mean
from steersman.facts import fact
from steersman.judges.llm import JUDGE_PROMPTS
from steersman.models.asking import Ask, Messages

_SCORER_SETTINGS = {"critique", "reasoning"}
_SIZES = tuple(each.name for each in fields(AutoSettings) if type(each.default) is int and each.name != "seed")


@fact
class Method:
    """An optimiser with its settings."""

    method: str
    """One of the registry, or two joined by `+`."""
    settings: dict[str, JsonValue] = field(default_factory=dict)


@fact
class Experiment:
    """All combinations of these are run; an axis that an optimiser does not have is left out for it."""

    behaviours: tuple[str, ...]
    optimisers: dict[str, Method]
    """By the name that the table shows."""
    scorers: tuple[str, ...] = ("critique",)
    """Of `textgrad.SCORERS`."""
    judge_prompts: tuple[str, ...] = ()
    """Of `llm.JUDGE_PROMPTS`; none: the local judge."""
    features: tuple[int, ...] = ()
    """How many features are weighed; none: as the optimiser has it."""
    epochs: tuple[int, ...] = ()
    """Of optimisers with epochs; none: as they have it."""
    seeds: tuple[int, ...] = (0,)
    examples: dict[str, str] = field(default_factory=dict)
    """File or shipped set of a behaviour's examples; behaviours without: the model's own answers."""
    sizes: dict[str, int] = field(default_factory=dict)
    """How much each run does; what is left out is as auto-steering has it."""

    def settings(self, seed: int) -> AutoSettings:
        """What auto-steering is told, by the seed of a run.

        Raises:
            DataError: sizes that prove nothing.
        """
        return AutoSettings(**{**self.sizes, "seed": seed})  # type: ignore[arg-type]


@fact
class Run:
    """One combination."""

    name: str
    """Of the optimiser, in the experiment."""
    method: str
    settings: dict[str, JsonValue]
    behaviour: str
    scorer: str | None
    judge_prompt: str | None
    features: int | None
    epochs: int | None
    seed: int

    @property
    def key(self) -> str:
        """The same for the same combination, whenever it is run; another one where anything differs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def optimiser(self, ask: Ask | None = None) -> Optimiser:
        """What is to tune, set as this combination says.

        Raises:
            DataError: settings that do not go together.
            EndpointError: it needs a language model and there is none.
        """
        axes: dict[str, JsonValue] = {**SCORERS[self.scorer]} if self.scorer is not None else {}
        axes |= {name: value for name in ("features", "epochs") if (value := getattr(self, name)) is not None}
        parts = parts_of(self.method)
        if len(parts) == 1:
            return make_optimiser(self.method, {**_of(parts[0], axes), **self.settings}, ask)
        merged: dict[str, Any] = dict(self.settings)
        for part in parts:
            own = merged.get(part, {})
            merged[part] = {**_of(part, axes), **own} if isinstance(own, Mapping) else own
        return make_optimiser(self.method, merged, ask)


def read_experiment(path: Path) -> Experiment:
    """The experiment that a TOML file describes.

    Raises:
        DataError: no such file, no TOML, unknown keys, or values that cannot be run; with the place.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no experiment {path}; check the path") from None
    except OSError as error:
        raise DataError(f"cannot read the experiment {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    try:
        return experiment_of(found)
    except SteersmanError as error:
        raise DataError(f"{path}: {error}") from error


def experiment_of(found: Mapping[str, Any]) -> Experiment:
    """The experiment that a table describes, every combination of it checked.

    Raises:
        DataError: unknown keys, or values that cannot be run.
    """
    known = [each.name for each in fields(Experiment)]
    for name in found:
        if name not in known:
            raise DataError(f"unknown key {name!r}; there are {', '.join(known)}" + did_you_mean(name, known))
    made = Experiment(
        behaviours=_list("behaviours", found.get("behaviours"), str),
        optimisers=_methods(found.get("optimisers")),
        scorers=_list("scorers", found.get("scorers", ["critique"]), str),
        judge_prompts=_list("judge_prompts", found.get("judge_prompts", []), str, may_be_empty=True),
        features=_list("features", found.get("features", []), int, may_be_empty=True),
        epochs=_list("epochs", found.get("epochs", []), int, may_be_empty=True),
        seeds=_list("seeds", found.get("seeds", [0]), int),
        examples=_named("examples", found.get("examples", {}), str),
        sizes=_named("sizes", found.get("sizes", {}), int),
    )
    _check_names("behaviour in examples", made.examples, made.behaviours)
    _check_names("size", made.sizes, _SIZES)
    made.settings(seed=0)
    _check_names("scorer", made.scorers, SCORERS)
    _check_names("judge prompt", made.judge_prompts, JUDGE_PROMPTS)
    for behaviour in made.behaviours:
        Behaviour(description=behaviour)
    for run in runs_of(made):
        run.optimiser(_nobody)
    return made


def runs_of(experiment: Experiment) -> tuple[Run, ...]:
    """Every combination once: behaviour by behaviour, seeds innermost."""
    found: dict[str, Run] = {}
    for behaviour, (name, method) in itertools.product(experiment.behaviours, experiment.optimisers.items()):
        axes = _axes_of(method)
        for scorer, judge_prompt, features, epochs, seed in itertools.product(
            experiment.scorers if "scorer" in axes else [None],
            experiment.judge_prompts or [None],
            (experiment.features or [None]) if "features" in axes else [None],
            (experiment.epochs or [None]) if "epochs" in axes else [None],
            experiment.seeds,
        ):
            run = Run(
                name=name,
                method=method.method,
                settings=method.settings,
                behaviour=behaviour,
                scorer=scorer,
                judge_prompt=judge_prompt,
                features=features,
                epochs=epochs,
                seed=seed,
            )
            found[run.key] = run
    return tuple(found.values())


def _axes_of(method: Method) -> set[str]:
    """The axes that a method has and does not fix itself."""
    parts = parts_of(method.method)
    axes: set[str] = set()
    for part in parts:
        own = method.settings if len(parts) == 1 else _table(method.settings.get(part))
        free = set(settings_of(part)) - set(own)
        axes |= free & {"features", "epochs"}
        axes |= {"scorer"} if free >= _SCORER_SETTINGS else set()
    return axes


def _of(part: str, axes: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    known = settings_of(part)
    return {name: value for name, value in axes.items() if name in known}


def _table(found: object) -> dict[str, Any]:
    return dict(found) if isinstance(found, Mapping) else {}


def _methods(found: object) -> dict[str, Method]:
    if not isinstance(found, Mapping) or not found:
        raise DataError("an experiment needs optimisers, such as a line [optimisers.textgrad]")
    made = {}
    for name, table in found.items():
        if not isinstance(table, Mapping):
            raise DataError(f"optimisers.{name} must be a table of settings, not {table!r}")
        method = table.get("method", name)
        if not isinstance(method, str):
            raise DataError(f"optimisers.{name}: method must be a name, not {method!r}")
        made[name] = Method(method=method, settings={key: table[key] for key in table if key != "method"})
    return made


def _list(name: str, found: object, kind: type, *, may_be_empty: bool = False) -> tuple[Any, ...]:
    """A list of texts, or of whole numbers from 0 on (above 0, but for seeds), each once."""
    words = "texts" if kind is str else "whole numbers"
    if not isinstance(found, Sequence) or isinstance(found, str) or any(type(value) is not kind for value in found):
        raise DataError(f"{name} must be a list of {words}" + ("" if found is None else f", not {found!r}"))
    if not found and not may_be_empty:
        raise DataError(f"{name} is empty; name at least one")
    low = 0 if name == "seeds" else 1
    for value in found if kind is int else ():
        if value < low:
            raise DataError(f"{name} must be {low} or more, not {value}")
    return tuple(dict.fromkeys(found))


def _named(name: str, found: object, kind: type) -> dict[str, Any]:
    """A table of texts, or of whole numbers."""
    words = "texts" if kind is str else "whole numbers"
    if not isinstance(found, Mapping) or any(type(value) is not kind for value in found.values()):
        raise DataError(f"{name} must be a table of {words}, not {found!r}")
    return dict(found)


def _check_names(what: str, found: Iterable[str], known: Collection[str]) -> None:
    for name in found:
        if name not in known:
            raise DataError(f"unknown {what} {name!r}; there are {', '.join(known)}" + did_you_mean(name, known))


def _nobody(_: Messages) -> str:
    """Stands in for a language model while settings are checked."""
    raise AssertionError("asked while settings are checked")
