"""Battles: a win holds in both orders, a judge that favours a place gives ties, a judge that fails gives gaps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from steersman.errors import EndpointError
from steersman.evals.battles import fight, fight_all
from steersman.evals.store import Ledger
from steersman.models.asking import Messages


def _judge(better: Callable[[str, str], str]) -> Callable[[Messages], str]:
    def ask(messages: Messages) -> str:
        shown = json.loads(messages[1]["content"])
        return json.dumps({"why": "so", "better": better(shown["A"], shown["B"])})

    return ask


LONGER = _judge(lambda a, b: "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie")


def test_a_win_holds_in_both_orders() -> None:
    assert fight(LONGER, "b", "p", "long one", "short") == "one"
    assert fight(LONGER, "b", "p", "short", "long one") == "other"
    assert fight(LONGER, "b", "p", "same", "also") == "tie"
    assert fight(_judge(lambda a, b: "A"), "b", "p", "x", "y") == "tie"
    assert fight(_judge(lambda a, b: "neither"), "b", "p", "x", "y") is None


def test_everything_is_counted(tmp_path: Path) -> None:
    def ask(messages: Messages) -> str:
        if "broken" in messages[1]["content"]:
            raise EndpointError("gone")
        return LONGER(messages)

    prompts = ["p1", "p2", "broken", "p4"]
    answers = {"a": ["long one", "x", "y", None], "b": ["no", "x y z", "w", "v"], "c": ["o", "o", "o", "o"]}
    kept = Ledger(tmp_path / "n.jsonl")
    first, *rest = fight_all(ask, "be long", prompts, answers, kept)
    assert (first.one, first.other) == ("a", "b")
    assert (first.wins, first.losses, first.ties, first.missing, first.total) == (1, 1, 0, 2, 4)
    assert len(rest) == 2
    # Three of three: 2 / 2^3, and the only battle.
    won = fight_all(ask, "be long", prompts, {"a": ["long", "long", "x", "long"], "b": ["s"] * 4}, kept)[0]
    assert (won.wins, won.p, won.p_holm) == (3, 0.25, 0.25)
    assert first.p == 1.0
    assert all(each.p is None or each.p_holm == min(1.0, 3 * each.p) for each in (first, *rest))
    for each in (first, *rest):
        assert each.wins + each.losses + each.ties + each.missing == each.total


def test_verdicts_are_kept(tmp_path: Path) -> None:
    class Once:
        def __init__(self) -> None:
            self.calls = 0

        def __repr__(self) -> str:
            return "once"

        def __call__(self, messages: Messages) -> str:
            self.calls += 1
            return LONGER(messages)

    judge, answers = Once(), {"a": ["long"], "b": ["x"]}
    fight_all(judge, "b", ["p"], answers, Ledger(tmp_path / "n.jsonl"))
    assert judge.calls == 2
    found = fight_all(judge, "b", ["p"], answers, Ledger(tmp_path / "n.jsonl"))
    assert (judge.calls, found[0].wins) == (2, 1)
