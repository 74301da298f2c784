"""Optimisers by name. A new one is one file with a frozen dataclass of settings, one line here, one test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from steersman.auto.optimise.bayes import Bayes
from steersman.auto.optimise.chain import Chain
from steersman.auto.optimise.gradient import Gradient
from steersman.auto.optimise.textgrad import TextGrad
from steersman.auto.task import Optimiser
from steersman.errors import DataError, EndpointError, did_you_mean
from steersman.models.asking import Ask

OPTIMISERS: dict[str, type[Any]] = {
    "gradient": Gradient,
    "bayes": Bayes,
    "textgrad": TextGrad,
}
"""Classes of settings."""

_HANDED_IN = {"ask", "start"}


def make_optimiser(method: str, settings: Mapping[str, Any] | None = None, ask: Ask | None = None) -> Optimiser:
    """An optimiser by name, such as `textgrad`, or two in a row, such as `gradient+textgrad`.

    Args:
        method: one of `OPTIMISERS`, or two of them joined by `+`.
        settings: its fields; those of two in a row stand under the name of each: `{"textgrad": {"epochs": 5}}`.
        ask: the language model, for those that need one.

    Raises:
        DataError: an unknown name or setting, or a value of the wrong kind.
        EndpointError: it needs a language model and there is none.
    """
    given = dict(settings or {})
    parts = parts_of(method)
    if len(parts) == 1:
        return _made(parts[0], given, ask)
    for name in given:
        if name not in parts:
            raise DataError(
                f"optimiser {method!r}: settings stand under the names of its parts, not {name!r}"
                + did_you_mean(name, parts)
            )
        if not isinstance(given[name], Mapping):
            raise DataError(f"optimiser {method!r}: {name!r} must be a table of settings, not {given[name]!r}")
    first, second = (_made(part, given.get(part, {}), ask) for part in parts)
    return Chain(first, second)


def parts_of(method: str) -> tuple[str, ...]:
    """The names in a method: one, or two in a row.

    Raises:
        DataError: an unknown name, the same one twice, or more than two.
    """
    parts = tuple(part.strip() for part in method.split("+"))
    for part in parts:
        if part not in OPTIMISERS:
            raise DataError(
                f"unknown optimiser {part!r}; there are {', '.join(OPTIMISERS)}" + did_you_mean(part, OPTIMISERS)
            )
    if len(parts) > 2 or len(set(parts)) < len(parts):
        raise DataError(f"optimiser {method!r}: at most two different ones follow each other")
    return parts


def settings_of(name: str) -> dict[str, Field[Any]]:
    """The settings of one optimiser, by name."""
    return {each.name: each for each in fields(OPTIMISERS[name]) if each.name not in _HANDED_IN}


def _made(name: str, settings: Mapping[str, Any], ask: Ask | None) -> Optimiser:
    known = settings_of(name)
    for setting, value in settings.items():
        if setting not in known:
            raise DataError(
                f"optimiser {name!r} has no setting {setting!r}; it has {', '.join(known)}"
                + did_you_mean(setting, known)
            )
        _check_kind(f"optimiser {name!r}: {setting}", value, known[setting].default)
    asks = "ask" in {each.name for each in fields(OPTIMISERS[name])}
    if asks and ask is None:
        raise EndpointError(
            f"optimiser {name!r} needs a language model: set STEERSMAN_LLM_URL and STEERSMAN_LLM_MODEL, or choose another"
        )
    made: Optimiser = OPTIMISERS[name](**({"ask": ask} if asks else {}), **settings)
    return made


def _check_kind(what: str, value: object, default: object) -> None:
    """A whole number where the default is one, and so on. Where the default is None, a whole number or None."""
    kinds: tuple[type, ...] = (int, type(None)) if default is None else (type(default),)
    kinds += (int,) if isinstance(default, float) else ()
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        names = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise DataError(f"{what} must be {names}, not {value!r}")
