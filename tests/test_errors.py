"""The error tree is the one that its docstring draws."""

from __future__ import annotations

import inspect

from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import few

from steersman import errors
from steersman.errors import SteersmanError, did_you_mean


def test_every_error_descends_from_one() -> None:
    for error in _classes().values():
        assert issubclass(error, SteersmanError)


def test_docstring_draws_the_tree_as_it_is() -> None:
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", "   ").replace("└──", "   ")
        name = words.split()[0] if words.split() else ""
        if name in _classes():
            depth = (len(words) - len(words.lstrip())) // 4 - 1
            path[depth:] = [name]
            drawn[name] = path[depth - 1] if depth else None
    parents = {name: error.__bases__[0].__name__ for name, error in _classes().items()}
    parents.pop("SteersmanError")
    assert drawn == {"SteersmanError": None, **parents}


def test_every_error_says_what_it_stands_for() -> None:
    assert all((error.__doc__ or "").strip() for error in _classes().values())


@few
@given(st.text(st.characters(codec="utf-8"), max_size=20), st.lists(st.text(max_size=10), max_size=5))
def test_a_suggestion_is_a_known_word_or_nothing(word: str, known: list[str]) -> None:
    said = did_you_mean(word, known)
    assert said == "" or any(said == f"; did you mean '{name}'?" for name in known)


def test_suggestion_finds_a_slip_of_the_finger() -> None:
    assert "'strength'" in did_you_mean("strenght", iter(["layer", "strength"]))
    assert did_you_mean("strength", []) == ""
    assert did_you_mean("entirely", ["other"]) == ""


def _classes() -> dict[str, type[Exception]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
