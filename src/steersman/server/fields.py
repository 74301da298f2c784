"""Say in one line what is wrong with a request's fields, and which one was probably meant. Knows nothing of HTTP statuses."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from steersman.errors import did_you_mean

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MOST = 3
_SHOWN_CHARACTERS = 80
_MOST_READ = 50
_MOST_CHARACTERS = 200


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where an error is: its path as a caller would write it, and the fields that an object there may have."""

    door: str
    """`body`, `query` or `path`."""
    path: str
    last: str
    siblings: tuple[str, ...]
    depth: int
    in_union: bool
    """One of several types that the value could have had is speaking."""


def explain(errors: Sequence[Mapping[str, Any]], route: Any) -> tuple[str, str | None]:
    """What to tell the caller.

    Args:
        errors: pydantic's, each with `type`, `loc`, `msg`, `input`; the first part of `loc` says where (`body`, `query`, `path`).
        route: the route they are about, for the names of its fields; None where it is not known.

    Returns:
        One line, and the place of the first error (`steering.recipe`), None for the whole body.
    """
    found = [(_place(error["loc"], route, error["type"]), error) for error in errors[:_MOST_READ]]
    if any(place.in_union for place, _ in found):
        # Each type of a union says what it misses; the deepest complaint is about the one that was meant.
        found.sort(key=lambda entry: -entry[0].depth)
    told = list(dict.fromkeys(_one(place, error) for place, error in found))
    more = len(told) - _MOST + len(errors) - len(found)
    first, error = found[0]
    path = first.path if error["type"] != "json_invalid" else ""
    # A field may be named as it likes, with line breaks too.
    said = " ".join("; ".join(told[:_MOST]).split())
    return said + (f" (and {more} more)" if more > 0 else ""), path or None


def _one(place: _Place, error: Mapping[str, Any]) -> str:
    kind = error["type"]
    door = "" if place.door == "body" else f" of the {place.door}"
    if kind == "json_invalid":
        return (
            f"the body is not valid JSON ({error.get('ctx', {}).get('error', 'it breaks off')}, character {place.last})"
        )
    if kind in _UNKNOWN and not place.last.strip():
        return f"unknown field without a name{door}"
    if not place.path and kind == "missing":
        return "the body is missing; send a JSON object"
    if not place.path and kind not in ("value_error", "assertion_error"):
        return "the body must be a JSON object"
    if kind in _UNKNOWN:
        is_a_word = len(place.last) <= _SHOWN_CHARACTERS  # Comparing megabytes with names takes seconds.
        return f"unknown field '{place.path}'{door}" + (did_you_mean(place.last, place.siblings) if is_a_word else "")
    if kind in ("missing", "missing_argument"):
        return f"field '{place.path}'{door} is missing"
    message = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    if not place.path:
        return message
    shown = _shown(error.get("input"))
    return f"'{place.path}'{door}: {message[:1].lower()}{message[1:]}" + (f", not {shown}" if shown else "")


def _shown(value: Any) -> str:
    if isinstance(value, bool | int | float | str | None):
        text = repr(value)
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return ""


def _place(loc: Sequence[Any], route: Any, kind: str) -> _Place:
    """Follow an error's path through the types of the body: `('body', 'items', 0, 'mode')` is `items[0].mode`.

    Parts that lead to nothing are the names that pydantic gives the members of a union.
    """
    door, last = str(loc[0]), str(loc[-1])
    if door != "body":
        dependant = getattr(route, "dependant", None)
        names = [parameter.alias for parameter in getattr(dependant, f"{door}_params", ())]
        return _Place(door, ".".join(map(str, loc[1:])), last, tuple(names), len(loc), in_union=False)
    field = getattr(route, "body_field", None)
    kinds = [] if field is None else list(_members(field.field_info.annotation))
    path, in_union, depth = "", False, 0
    for index, part in enumerate(loc[1:], 2):
        inner = [member for kind in kinds for below in _inner(kind, part) for member in _members(below)]
        is_named = index == len(loc) and (kind in _UNKNOWN or _is_field(kinds, part))
        if not inner and len(kinds) > 1 and not is_named:
            in_union = True
            kinds = [kind for kind in kinds if getattr(kind, "__name__", "") == part] or kinds
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        depth += 1
        if index < len(loc):
            kinds = inner
    siblings = sorted({name for kind in kinds for name in _fields(kind)})
    return _Place(door, path[:_MOST_CHARACTERS], last, tuple(siblings), depth, in_union)


def _is_field(kinds: Sequence[Any], part: Any) -> bool:
    """Whether the last part of a path can be a key of an object, rather than the name of a type."""
    named = {getattr(kind, "__name__", "") for kind in kinds} | {str(kind) for kind in kinds}
    return part not in named and not any(char in str(part) for char in "([-") and any(_fields(kind) for kind in kinds)


def _inner(kind: Any, part: Any) -> Iterator[Any]:
    """The types of what lies at `part` of a value of this type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if part in (fields := _fields(kind)):
        yield fields[part]
    elif isinstance(part, str) and isinstance(origin, type) and issubclass(origin, Mapping):
        yield arguments[1]
    elif isinstance(part, int) and isinstance(origin, type) and issubclass(origin, Sequence):
        yield from (argument for argument in arguments if argument is not Ellipsis)


def _members(kind: Any) -> Iterator[Any]:
    """The types that a type may stand for: those of a union, without None and `Annotated`."""
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _members(member)
    elif kind is not types.NoneType:
        yield kind


def _fields(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {}
