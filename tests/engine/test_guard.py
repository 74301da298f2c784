"""The guard measures what it says, does what it is told, and nothing when it is off."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.rig import ALWAYS, Passes, answer, ask, dictate, make_engine, model_of, prompts, push, watching

from steersman.engine.guard import Guard, GuardEvent, judge, repetition

# --- measures


@pytest.mark.parametrize(
    ("tokens", "share"), [([], 0.0), ([1, 1], 0.0), ([1, 2, 3, 4], 0.0), ([7] * 10, 7 / 8), ([1, 2, 3] * 3, 4 / 7)]
)
def test_repetition(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40))
def test_repetition_is_a_share_that_a_repetition_raises(tokens: list[int]) -> None:
    assert 0.0 <= repetition(tokens) < 1.0
    if len(tokens) >= 3:
        assert repetition(tokens * 2) > repetition(tokens) or repetition(tokens) > 0.0


def test_text_counts_as_repetitive_from_half_a_window_on() -> None:
    guard = Guard(mode="warn", window_tokens=16)
    assert judge(guard, [5] * 7, None, 1.0) is None
    event = judge(guard, [5] * 8, None, 1.0)
    assert event == GuardEvent(8, "repetition", pytest.approx(5 / 6), 0.4, 1.0)
    assert judge(guard, [*([5] * 8), *range(16)], None, 1.0) is None


@pytest.mark.parametrize(("mean", "unlikely"), [(-5.01, True), (-4.99, False), (None, False)])
def test_text_counts_as_unlikely_below_the_limit(mean: float | None, unlikely: bool) -> None:
    event = judge(Guard(mode="warn", min_logprob=-5.0), range(20), mean, 1.0)
    assert (event is not None) == unlikely
    assert event is None or (event.reason, event.measured, event.limit) == ("unlikely", mean, -5.0)
    assert judge(Guard(mode="warn", min_logprob=None), range(20), mean, 1.0) is None


@pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (5, [5])])
def test_it_looks_after_so_many_tokens(every: int, due: list[int]) -> None:
    assert [n for n in range(7) if Guard(mode="warn", every_tokens=every).is_due(n)] == due
    assert not any(Guard(mode="off", every_tokens=every).is_due(n) for n in range(20))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_the_likelihood_is_that_of_the_unsteered_model(kind: str) -> None:
    model, prompt = model_of(kind), "once upon a time"
    result = answer(ask(prompt, push(strength=1.5), tokens=21, guard=watching("warn")), model)
    plain = answer(ask(prompt, tokens=21), model)
    assert result.token_ids != plain.token_ids
    ids = [*model.encode(prompt), *result.token_ids]
    with torch.no_grad():
        logprobs = model.hf(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    each = [float(logprobs[place - 1, token]) for place, token in enumerate(ids) if place >= len(ids) - 21]
    assert [event.at_token for event in result.guard_events] == [4, 8, 12, 16, 20]
    for event in result.guard_events:
        window = each[max(0, event.at_token - 6) : event.at_token]
        assert (event.reason, event.limit) == ("unlikely", ALWAYS)
        assert event.measured == pytest.approx(sum(window) / len(window), abs=2e-3)


# --- what it does


def test_off_does_nothing_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, guard = Passes(monkeypatch), watching("off", max_repetition=0.0)
    result = answer(ask("hello", push(), tokens=20, guard=guard))
    assert result.guard_events == ()
    assert len(passes.shapes) == 20
    assert result == answer(ask("hello", push(), tokens=20))


def test_warn_notes_what_it_sees_and_changes_nothing() -> None:
    request = ask("hello", push(), tokens=20, guard=watching("warn"))
    result = answer(request)
    assert {(event.strength, event.reason) for event in result.guard_events} == {(1.0, "unlikely")}
    unwatched = answer(dataclasses.replace(request, guard=Guard()))
    assert dataclasses.replace(result, guard_events=()) == unwatched


def test_stop_ends_the_answer_where_it_looks() -> None:
    plain = answer(ask("hello", push(), tokens=20))
    result = answer(ask("hello", push(), tokens=20, guard=watching("stop", every_tokens=7)))
    assert result.finish_reason == "guard"
    assert result.token_ids == plain.token_ids[:7]
    assert [(event.at_token, event.strength) for event in result.guard_events] == [(7, 1.0)]


def test_soften_lowers_the_strength_each_time_and_at_last_to_nothing() -> None:
    request = ask("hello", push(), tokens=40, strength=2.0, guard=watching("soften", soften_by=0.5))
    result = answer(request)
    assert [event.strength for event in result.guard_events] == [1.0, 0.5, 0.25, 0.0]
    assert {event.rewound_to for event in result.guard_events} == {0}
    assert result.strength == 0.0
    assert result.finish_reason == "length"
    assert len(result.token_ids) == 40


def test_repetition_is_seen_without_steering_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    dictate(monkeypatch, model, "abcdefgh" + "xyz" * 20, end=False)
    guard = Guard(mode="stop", every_tokens=4, window_tokens=12)
    passes = Passes(monkeypatch)
    result = answer(ask("hello", tokens=60, guard=guard))
    assert (result.finish_reason, result.guard_events[0].reason) == ("guard", "repetition")
    assert 12 < len(result.token_ids) < 30
    # Nothing is measured where nothing steers.
    assert len(passes.shapes) == len(result.token_ids)


def test_softening_reaches_its_own_request_alone() -> None:
    texts, engine = prompts(4), make_engine(model_of("llama"))
    plain = engine.generate([ask(text, push(index), tokens=20) for index, text in enumerate(texts)])
    requests = [ask(text, push(index), tokens=20) for index, text in enumerate(texts)]
    requests[1] = dataclasses.replace(requests[1], guard=watching("soften"))
    mixed = engine.generate(requests)
    assert [mixed[index] for index in (0, 2, 3)] == [plain[index] for index in (0, 2, 3)]
    assert mixed[1].strength < 1.0


def test_the_first_token_is_looked_at_too() -> None:
    result = answer(ask("hello", push(), tokens=5, guard=watching("warn", every_tokens=1)))
    assert [event.at_token for event in result.guard_events] == [1, 2, 3, 4]
