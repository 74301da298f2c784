"""Who drives the engine step by step learns all that its requests have to tell, and gets what others get."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from tests.engine.rig import ask, broken_block, dictate, make_engine, model_of, prompts, push, watching

from steersman.engine.engine import Engine
from steersman.engine.request import Chunk, Request, Result
from steersman.engine.sequence import RunningSequence
from steersman.engine.ticket import Ticket
from steersman.errors import RequestError, SteersmanError


def driven(engine: Engine, *requests: Request) -> list[list[Chunk]]:
    """What each request had to tell, step by step."""
    tickets = [engine.prepare(request, stream=True) for request in requests]
    for ticket in tickets:
        engine.start(ticket)
    told: list[list[Chunk]] = [[] for _ in tickets]
    open_ones = dict(enumerate(tickets))
    while open_ones:
        engine.step()
        for index, ticket in list(open_ones.items()):
            if ticket.has_news:
                told[index].append(ticket.take())
                if told[index][-1].result is not None:
                    del open_ones[index]
    return told


def end(chunks: list[Chunk]) -> Result:
    assert chunks[-1].result is not None
    return chunks[-1].result


def kept(result: Result) -> tuple[object, ...]:
    """What does not change in the last bit with what else is in the batch."""
    return result.text, result.token_ids, result.finish_reason, result.strength, len(result.guard_events)


@pytest.mark.parametrize("mode", ["off", "soften"])
def test_steps_bring_what_a_stream_and_a_call_bring(mode: str) -> None:
    guard = watching(mode, min_logprob=-7.0)
    requests = [ask(text, push(i, layer=1 + i % 2), 12, guard=guard) for i, text in enumerate(prompts(6))]
    told = driven(make_engine(model_of("llama"), slots=4), *requests)
    expected = make_engine(model_of("llama")).generate(requests)
    assert [kept(end(chunks)) for chunks in told] == [kept(result) for result in expected]
    assert ["".join(chunk.text for chunk in chunks) for chunks in told] == [result.text for result in expected]
    for request, chunks in zip(requests, told, strict=True):
        streamed = list(make_engine(model_of("llama")).stream(request))
        assert [chunk.text for chunk in chunks if chunk.text or chunk.result] == [chunk.text for chunk in streamed]
        assert kept(end(chunks)) == kept(end(streamed))


@pytest.mark.parametrize("top", [None, 0, 3])
@pytest.mark.parametrize("mode", ["off", "soften"])
def test_pieces_carry_the_logprobs_of_their_tokens_each_once(mode: str, top: int | None) -> None:
    request = ask("hello", push(), 24, logprobs=top, stop=("zzz",), guard=watching(mode, min_logprob=-7.0))
    [chunks] = driven(make_engine(model_of("llama")), request)
    assert tuple(item for chunk in chunks for item in chunk.logprobs) == end(chunks).logprobs
    assert (top is None) == (end(chunks).logprobs == ())


def test_no_text_comes_before_its_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    dictate(monkeypatch, model, "aü€b")  # One byte a token here: characters of 1, 2 and 3 tokens.
    [chunks] = driven(make_engine(model), ask("hello", tokens=20, ignore_eos=False))
    text, token_ids = "", []
    for chunk in chunks[:-1]:
        assert bool(chunk.text) == bool(chunk.logprobs)
        text += chunk.text
        token_ids += [item.token_id for item in chunk.logprobs]
        assert model.decode(token_ids).startswith(text)
    assert [chunk.text for chunk in chunks if chunk.text] == ["a", "ü", "€", "b"]


def test_who_goes_ahead_is_answered_first_and_in_order() -> None:
    engine, order = make_engine(model_of("llama"), slots=1), []
    tickets = [engine.prepare(ask(f"request {index}", tokens=2)) for index in range(5)]
    for index, ahead in [(0, False), (1, False), (2, True), (3, True), (4, False)]:
        engine.start(tickets[index], ahead=ahead)
    while len(order) < 5:
        engine.step()
        order += [i for i, ticket in enumerate(tickets) if ticket.is_done and i not in order]
    assert order == [2, 3, 0, 1, 4]


def test_what_was_prepared_runs_only_once_started() -> None:
    engine = make_engine(model_of("llama"))
    ticket = engine.prepare(ask("hello"))
    engine.step()
    assert not ticket.has_news
    engine.start(ticket)
    engine.step()
    assert ticket.has_news
    with pytest.raises(RequestError):
        engine.prepare(ask(""))


def test_a_step_with_nothing_to_do_returns() -> None:
    make_engine(model_of("llama")).step()


def test_a_step_that_breaks_is_told_by_the_tickets_that_took_part() -> None:
    model = model_of("llama")
    engine = make_engine(model, slots=1)
    first, waiting = engine.prepare(ask("first")), engine.prepare(ask("waiting"))
    engine.start(first)
    engine.start(waiting)
    with broken_block(model, RuntimeError("broken")):
        engine.step()
    assert first.has_news
    with pytest.raises(SteersmanError, match="broken"):
        first.take()
    while not waiting.is_done:
        engine.step()
    assert kept(waiting.result()) == kept(make_engine(model).generate([ask("waiting")])[0])


def test_a_step_that_nobody_took_part_in_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(model_of("llama"))
    monkeypatch.setattr(engine, "_admit", lambda: 1 / 0)
    ticket = engine.submit(ask("hello"))
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert not ticket.is_done


def test_who_steps_while_another_thread_drives_sees_every_token_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(model_of("llama"))
    original: Callable[..., None] = RunningSequence.accept

    def slow(sequence: RunningSequence, *args: object) -> None:
        time.sleep(0.001)
        original(sequence, *args)

    monkeypatch.setattr(RunningSequence, "accept", slow)
    driver = threading.Thread(target=lambda: engine.generate([ask("long", tokens=200)]), daemon=True)
    driver.start()
    ticket: Ticket = engine.prepare(ask("mine", push(), 40), stream=True)
    engine.start(ticket)
    news = 0
    while not ticket.is_done:
        engine.step()
        news += ticket.has_news
        if not ticket.is_done:
            ticket.take()
    assert driver.is_alive()  # It was the other one that drove, all the while.
    assert news >= 30
    driver.join(60)
    assert kept(ticket.result()) == kept(make_engine(model_of("llama")).generate([ask("mine", push(), 40)])[0])


def test_a_request_is_read_at_once_and_the_running_ones_have_their_turn_in_between() -> None:
    """First tokens wait for no decode step; but after `prefill_tokens` of prompts the running rows write one."""
    model = model_of("llama")
    width = 64
    assert len(model.encode("a" * width)) == width
    engine = make_engine(model, slots=8, prefill_tokens=2 * width)
    first, *others = [engine.prepare(ask("a" * width, None, 40), stream=True) for _ in range(7)]
    engine.start(first)
    engine.step()
    order = ""
    for ticket in others:
        engine.start(ticket)
        while not ticket.sequence.written:
            before = len(first.sequence.written)
            engine.step()
            is_read = bool(ticket.sequence.written)
            assert len(first.sequence.written) == before + (not is_read)  # Told before anything else is begun.
            order += "r" if is_read else "w"
    assert order == "rwrrwrrwr"
