"""A language model widens the search; what it says is read strictly, and its absence changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.auto.rig import planted_task
from tests.auto.scripted import Reports, Script
from tests.sae.index.toy_index import WordEncoder

from steersman.auto.autosteer import AutoSettings, _candidates
from steersman.auto.expand import Query, expanded, queries_of
from steersman.auto.facts import Behaviour
from steersman.auto.retrieve import RetrievalSettings, retrieve
from steersman.auto.task import Task
from steersman.errors import EndpointError
from steersman.models.language_model import LanguageModel
from steersman.sae.index.embed import embed_index

_PIRATE = Behaviour(description="Talk like a pirate.", opposite="Talk like a clerk.")
_REPLY = json.dumps({"raise": ["ships and the sea", "old sailors"], "lower": ["office work"]})


def test_the_description_and_its_opposite_are_always_searched() -> None:
    assert queries_of(_PIRATE) == (Query("Talk like a pirate."), Query("Talk like a clerk.", is_opposite=True))
    assert expanded(Script(_REPLY), _PIRATE)[:2] == queries_of(_PIRATE)


def test_queries_of_a_language_model_are_added_with_their_side() -> None:
    ask = Script(_REPLY)
    assert expanded(ask, _PIRATE)[2:] == (
        Query("ships and the sea"),
        Query("old sailors"),
        Query("office work", is_opposite=True),
    )
    assert "Talk like a pirate. Opposite: Talk like a clerk." in ask.heard[0][1]["content"]


@pytest.mark.parametrize(
    "reply",
    [
        "ships",
        '{"raise": [], "lower": []}',
        '{"raise": ["a", 3], "lower": []}',
        '{"raise": ["x"]}',
        '{"raise": "x", "lower": []}',
    ],
)
def test_a_reply_that_is_no_list_of_queries_is_asked_for_again(reply: str) -> None:
    assert len(expanded(Script(reply, _REPLY), _PIRATE)) == 5
    with pytest.raises(EndpointError, match="no usable answer in 3 tries"):
        expanded(Script(reply, reply, reply), _PIRATE)


def _searchable(tiny: LanguageModel) -> Task:
    task = planted_task(tiny)
    return replace(task, index=embed_index(task.index, WordEncoder(), tiny.tokenizer))


def test_what_only_an_opposite_finds_is_pushed_down(tiny: LanguageModel) -> None:
    task = _searchable(tiny)
    settings = RetrievalSettings(gradient=0, contrast=0, search=6)
    found = retrieve(task, WordEncoder(), settings, (Query("word3"), Query("word5", is_opposite=True)))
    scores = {each.id: each.score for each in found}
    assert scores[3] > 0
    assert scores[5] < 0
    assert len(found) <= 6
    assert sum(score < 0 for score in scores.values()) <= 2


def test_a_language_model_that_is_gone_costs_only_its_queries(tiny: LanguageModel) -> None:
    reports = Reports()
    task = replace(_searchable(tiny), report=reports)
    settings = AutoSettings(retrieval=RetrievalSettings(gradient=4, contrast=0, search=2))
    alone = _candidates(task, WordEncoder(), settings, None)  # type: ignore[arg-type]
    assert _candidates(task, WordEncoder(), settings, Script(EndpointError("gone"))) == alone  # type: ignore[arg-type]
    assert reports.told[-1] == ("search", {"expanded": False, "why": "gone"})
