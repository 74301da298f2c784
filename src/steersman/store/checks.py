"""What may be kept: names, tags, texts, JSON documents and pages, the same for every database. Knows nothing of SQL.

PostgreSQL refuses the character NUL in texts, SQLite refuses half a character, neither takes a whole number of any size: so what
one of them would refuse is refused here, in words.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import JsonValue

from steersman.errors import DataError

MOST_DOCUMENT_BYTES = 64 << 20
MOST_DEPTH = 100
MOST_PAGE = 1_000
MOST_TAGS = 50
MOST_LEASE_S = 7 * 86_400.0
_MOST_OFFSET = 1 << 31
_MOST_REASON = 2_000
_MOST_SLUG = 80
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What a recipe or a tag may be called."""
_NAME = re.compile(NAME)
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")


def check_name(name: str, what: str) -> str:
    """A name that fits into addresses and model names.

    Args:
        name: 1 to 100 letters, digits, dots, dashes and underscores of ASCII, the first a letter or digit.
        what: what is named, for the message: `recipe name`.

    Raises:
        DataError: anything else, with a name that would do.
    """
    if _NAME.fullmatch(name):
        return name
    raise DataError(
        f"{what} {_shown(name)} must be 1 to 100 letters, digits, dots, dashes or underscores, the first a letter or digit; "
        f"{slug(name)!r} would do"
    )


def check_owner(owner: str) -> str:
    """An owner: as a name, with `@` and `+` for mail addresses.

    Raises:
        DataError: anything else.
    """
    if _OWNER.fullmatch(owner):
        return owner
    raise DataError(
        f"owner {_shown(owner)} must be 1 to 100 letters, digits or any of . _ @ + -, the first a letter or digit"
    )


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags by the rule of names, each once, sorted.

    Raises:
        DataError: one is no name, or there are more than 50.
    """
    found = tuple(sorted({check_name(tag, "tag") for tag in tags}))
    if len(found) > MOST_TAGS:
        raise DataError(f"{len(found)} tags are too many; keep the {MOST_TAGS} that matter")
    return found


def check_text(text: str, what: str, *, most: int = 100) -> str:
    """A text for people: printable, not blank, at most `most` characters.

    Raises:
        DataError: anything else.
    """
    # Python counts no space but the ASCII one as printable; Japanese has one of its own.
    is_printable = all(
        character.isprintable() or unicodedata.category(character) == "Zs" for character in text[: most + 1]
    )
    if not text.strip() or len(text) > most or not is_printable:
        raise DataError(f"{what} {_shown(text)} must be 1 to {most} printable characters")
    return text


def is_keepable(text: str) -> bool:
    """Whether both databases take this text: no NUL, no half character."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def slug(text: str, empty: str = "unnamed") -> str:
    """The name nearest to a text, at most 80 characters; a name of 80 characters or fewer is itself."""
    if len(text) <= _MOST_SLUG and _NAME.fullmatch(text):
        return text
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:_MOST_SLUG].rstrip("-") or empty


def one_line(text: str) -> str:
    """A reason as it is kept: one line, at most 2,000 characters, without what a database refuses."""
    clean = "".join(character if is_keepable(character) else "�" for character in text[: 2 * _MOST_REASON])
    return " ".join(clean.split())[:_MOST_REASON] or "no reason given"


def to_document(value: JsonValue | dict[str, JsonValue], what: str) -> str:
    """A JSON value as the text that is kept; `from_document` gives it back equal.

    Raises:
        DataError: no JSON (NaN, keys that are no text, other types), half a character, nested deeper than 100, over 64 MB.
    """
    _check_shape(value, what)
    try:
        # NUL and its kin are escaped, so that any database takes the text.
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"{what} holds half a character (a lone surrogate); write it whole") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{what} cannot be kept as JSON: {error}") from error
    if size > MOST_DOCUMENT_BYTES:
        raise DataError(f"{what} has {size >> 20} MB; at most {MOST_DOCUMENT_BYTES >> 20} MB are kept")
    return text


def from_document(text: str) -> Any:
    """The value that `to_document` was given."""
    return json.loads(text)


def page(limit: int, offset: int) -> tuple[int, int]:
    """How many rows to read and from where; an offset behind every row stays behind every row.

    Raises:
        DataError: a negative number, or more than 1,000 at once.
    """
    if not 0 <= limit <= MOST_PAGE:
        raise DataError(f"limit must be 0 to {MOST_PAGE}, not {limit}; read on with offset")
    if offset < 0:
        raise DataError(f"offset must be 0 or more, not {offset}")
    return limit, min(offset, _MOST_OFFSET)


def lease_end(now: datetime, lease_s: float) -> datetime:
    """When a lease taken now runs out.

    Raises:
        DataError: not between 0 and a week.
    """
    if not 0 < lease_s <= MOST_LEASE_S:
        raise DataError(f"a lease lasts more than 0 and at most {MOST_LEASE_S:.0f} seconds, not {lease_s}")
    return now + timedelta(seconds=lease_s)


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def _check_shape(value: object, what: str) -> None:
    """Refuse what `json` would silently change (keys that are no text) or not read back (too deep)."""
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise DataError(f"{what} is nested deeper than {MOST_DEPTH} levels")
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise DataError(f"{what} has a key that is no text")
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
        level, depth = below, depth + 1


def _shown(text: str) -> str:
    """A text in a message: quoted, escaped, cut."""
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")
