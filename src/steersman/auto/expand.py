"""What else a behaviour may be looked for under: queries by a language model, some for the opposite. Knows no features."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import JsonValue

from steersman.auto.facts import Behaviour
from steersman.models.asking import Ask, ask_json, fields_of

_LONGEST = 120
_PROMPT = """Features of a language model are labelled with the words and topics at which they fire. Somebody wants the model to \
behave in a certain way. Write search queries that find the features to raise, and queries for the opposite behaviour, whose \
features are lowered. A query is a few words: topics, typical words, tone. Reply with JSON alone: \
{"raise": [...], "lower": [...]}, with 3 queries to raise and 2 to lower."""


class Query(NamedTuple):
    """Something to search labels for."""

    text: str
    is_opposite: bool = False
    """Whether what is found is to be pushed down."""


def queries_of(behaviour: Behaviour) -> tuple[Query, ...]:
    """The description, and the opposite where there is one."""
    own = Query(behaviour.description)
    return (own, Query(behaviour.opposite, is_opposite=True)) if behaviour.opposite else (own,)


def expanded(ask: Ask, behaviour: Behaviour) -> tuple[Query, ...]:
    """`queries_of`, and about five more by a language model.

    Raises:
        EndpointError: no usable reply, or none at all.
    """
    wish = (
        behaviour.description if not behaviour.opposite else f"{behaviour.description} Opposite: {behaviour.opposite}"
    )
    messages = [{"role": "system", "content": _PROMPT}, {"role": "user", "content": wish}]
    return (*queries_of(behaviour), *ask_json(ask, messages, _read))


def _read(reply: JsonValue) -> tuple[Query, ...]:
    fields = fields_of(reply, "raise", "lower")
    found = []
    for name, least in (("raise", 1), ("lower", 0)):
        texts = fields[name]
        if not isinstance(texts, list) or not least <= len(texts) <= 8:
            raise ValueError(f'"{name}" must be a list of {least} to 8 queries')
        for text in texts:
            if not isinstance(text, str) or not text.strip() or len(text) > _LONGEST:
                raise ValueError(f'"{name}" must hold texts of 1 to {_LONGEST} characters')
            found.append(Query(" ".join(text.split()), is_opposite=name == "lower"))
    return tuple(found)
