"""Steering methods by name, and how several are fitted one after the other, each once for a folder.

A new method is a class in `fitting` (or a file of its own) with a name and a `fit`, a line in `METHODS`, and a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from steersman.errors import DataError, SteersmanError, did_you_mean
from steersman.evals.context import Context
from steersman.evals.facts import Fitted, Progress
from steersman.evals.fitting import (
    Auto,
    BestFeature,
    Method,
    Optimised,
    Pairs,
    Plain,
    Prompted,
    RandomVector,
    Targeted,
    Topic,
    WrongSign,
)
from steersman.evals.store import RunFolder, cache_key, recipe_hash

METHODS: dict[str, Callable[[], Method]] = {
    "caa": lambda: Pairs("caa"),
    "lat": lambda: Pairs("lat"),
    "optimised": Optimised,
    "sae": BestFeature,
    "sae-ts": Targeted,
    "topic": Topic,
    "auto": Auto,
    "prompt": Prompted,
    "plain": Plain,
    "random": RandomVector,
    "wrong-sign": WrongSign,
}
"""What can be evaluated."""

DEFAULT_METHODS = (
    "caa",
    "lat",
    "optimised",
    "sae",
    "sae-ts",
    "topic",
    "auto",
    "prompt",
    "plain",
    "random",
    "wrong-sign",
)
_ALWAYS = ("prompt", "plain")
_AFTER = ("random", "wrong-sign")


def methods_of(names: Sequence[str]) -> list[Method]:
    """Methods by name; prompting and the plain model are always among them, controls made from others come last.

    Raises:
        DataError: an unknown name, or none that steers.
    """
    for name in names:
        if name not in METHODS:
            raise DataError(f"unknown method {name!r}; there are {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    wanted = list(dict.fromkeys([*names, *_ALWAYS]))
    if not set(names) - set(_ALWAYS) - set(_AFTER):
        raise DataError("there is no method that steers among those to be compared; name one, such as caa")
    ordered = [name for name in wanted if name not in _AFTER] + [name for name in wanted if name in _AFTER]
    return [METHODS[name]() for name in ordered]


def fit_all(
    methods: Sequence[Method], context: Context, kept: RunFolder, progress: Progress | None = None
) -> list[Fitted]:
    """Fit methods in order; one that fails is a gap with its reason. Recipes from before are taken as they are.

    Raises:
        StorageError: the disk refused.
    """
    done: list[Fitted] = []
    for method in methods:
        so_far = replace(context, fitted=tuple(done))
        # Only controls are made from other methods, and only SAE-TS from an effect map: the rest is not fitted again for them.
        made_from: list[JsonValue] = _made_from(done) if method.name in _AFTER else []
        if isinstance(method, Targeted):
            made_from = [context.effects_sha256]
        key = cache_key([method.name, repr(method), context.identity, made_from])
        found = _kept(kept, key, method.name)
        if found is None:
            try:
                found = method.fit(so_far)
            except SteersmanError as error:
                found = Fitted(name=method.name, control=method.name in (*_ALWAYS, *_AFTER), error=str(error))
            if found.recipe is not None:
                kept.keep_recipe(key, found.recipe)
                kept.notes.put({key: _facts(found)})
        done.append(found)
        if progress is not None:
            progress("methods", len(done), len(methods), method.name)
    return done


def _made_from(done: Sequence[Fitted]) -> list[JsonValue]:
    """What decides a control: the recipes that were fitted before it."""
    return [[each.name, recipe_hash(each.recipe)] for each in done if each.recipe is not None]


def _facts(fitted: Fitted) -> dict[str, JsonValue]:
    strengths: JsonValue = None if fitted.strengths is None else [*fitted.strengths]
    return {"system": fitted.system, "strengths": strengths, "control": fitted.control, "note": fitted.note}


def _kept(kept: RunFolder, key: str, name: str) -> Fitted | None:
    """A method that was fitted before, with its recipe; None where either is not there."""
    facts = kept.notes.get(key)
    recipe = kept.recipe(key) if isinstance(facts, Mapping) else None
    if recipe is None or not isinstance(facts, Mapping):
        return None
    strengths, system = facts.get("strengths"), facts.get("system")
    return Fitted(
        name=name,
        recipe=recipe,
        system=system if isinstance(system, str) else None,
        strengths=tuple(float(str(each)) for each in strengths) if isinstance(strengths, list) else None,
        control=bool(facts.get("control")),
        note=str(facts.get("note", "")),
    )
