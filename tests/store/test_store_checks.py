"""What may be kept: any text has a name near it, any JSON comes back equal, and nothing passes that a database refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import few

from steersman.errors import DataError
from steersman.store import checks
from steersman.store.checks import (
    check_name,
    check_owner,
    check_tags,
    check_text,
    from_document,
    is_keepable,
    one_line,
    page,
    slug,
    to_document,
)

_any_text = st.text(st.characters(), max_size=150)


@few
@given(_any_text)
def test_any_text_has_a_name_near_it(text: str) -> None:
    near = slug(text)
    assert check_name(near, "name") == near
    assert len(near) <= 80
    assert slug(near) == near


@pytest.mark.parametrize("name", ["a", "A.b_c-1", "x-", "7", "a" * 80])
def test_a_name_is_its_own_slug(name: str) -> None:
    assert slug(name) == check_name(name, "name") == check_owner(name) == name


@few
@given(_any_text)
def test_any_reason_becomes_one_line_that_can_be_kept(text: str) -> None:
    said = one_line(text * 30)
    assert said
    assert is_keepable(said)
    assert "\n" not in said
    assert len(said) <= 2000
    assert one_line(said) == said


@few
@given(_any_text)
def test_a_text_that_passes_can_be_kept(text: str) -> None:
    try:
        check_text(text, "label")
    except DataError as error:
        assert str(error).isascii()
        return
    assert is_keepable(text)
    assert text.encode()


def test_labels_may_be_in_any_language() -> None:
    for text in ("日本　語", "ünï cödé", "🙂", "a'b\"c; DROP TABLE x"):
        assert check_text(text, "label") == text
    for text in ("", "　", "a\tb", "a\0", "\u202e", "\ud800", "x" * 101):
        with pytest.raises(DataError):
            check_text(text, "label")


def test_tags_are_sorted_and_each_there_once() -> None:
    assert check_tags(["b", "a", "b"]) == ("a", "b")


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=5), items, max_size=3),
    max_leaves=8,
)


@few
@given(_values)
def test_a_document_comes_back_equal(value: Any) -> None:
    text = to_document(value, "it")
    assert from_document(text) == value
    assert is_keepable(text)


@pytest.mark.parametrize(
    "wrong", [float("nan"), float("-inf"), {1: 2}, {None: 1}, {"a": {1}}, b"x", "\udc80", object()]
)
def test_what_is_no_document_is_refused(wrong: Any) -> None:
    with pytest.raises(DataError, match="it "):
        to_document({"a": [wrong]}, "it")


def test_a_document_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MOST_DOCUMENT_BYTES", 1 << 20)
    assert to_document("x" * 1000, "it")
    with pytest.raises(DataError, match="at most 1 MB"):
        to_document("ä" * 600_000, "it")


def test_a_document_that_holds_itself_is_refused() -> None:
    round_and_round: list[Any] = []
    round_and_round.append(round_and_round)
    with pytest.raises(DataError, match="deeper"):
        to_document(round_and_round, "it")


def test_a_page_is_bounded() -> None:
    assert page(1000, 0) == (1000, 0)
    assert page(0, 5) == (0, 5)
    assert page(1, 10**40)[1] < 2**63
    for wrong in ((-1, 0), (1001, 0), (1, -1)):
        with pytest.raises(DataError):
            page(*wrong)


def test_a_number_too_long_to_be_written_is_refused() -> None:
    with pytest.raises(DataError, match="it "):
        to_document([10**5000], "it")
