"""Many threads share one engine: nobody's steering, text or error ends up with another, and nobody waits forever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.engine.rig import KINDS, ask, broken_block, dictate, edit_of, hooks_of, make_engine, model_of, prompts, push

from steersman.engine.engine import Engine
from steersman.engine.request import Request
from steersman.engine.runner import Runner
from steersman.errors import SteersmanError
from steersman.models.language_model import LanguageModel
from steersman.steering.recipe import Recipe

PATIENCE_S = 60.0


class Thread(threading.Thread):
    """Runs a function and keeps what it returned or raised; a daemon, so that one that hangs cannot hold up the others."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work, self.found, self.error = work, None, None
        self.start()

    def run(self) -> None:
        try:
            self.found = self.work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def end(self) -> Any:
        """What it returned, or its error raised again; fails when it hangs."""
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the thread hangs"
        if self.error is not None:
            raise self.error
        return self.found


def work_of(thread: int, count: int = 3) -> list[Request]:
    """Requests that only this thread makes: prompts, recipes and settings of its own."""
    recipe = Recipe(name=f"of{thread}", edits=(edit_of(KINDS[thread % len(KINDS)], 50 + thread, layer=1 + thread % 2),))
    texts = prompts(8 * count, longest=50)[thread::8]
    return [
        ask(text, None if index == 1 else recipe, tokens=6 + index, temperature=2.0 * (thread % 2), seed=thread)
        for index, text in enumerate(texts)
    ]


def solo(model: LanguageModel, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    return [make_engine(model).generate([request])[0].token_ids for request in requests]


def streamed(engine: Engine, request: Request) -> tuple[int, ...]:
    chunks = list(engine.stream(request))
    result = chunks[-1].result
    assert result is not None
    assert "".join(chunk.text for chunk in chunks) == result.text
    return result.token_ids


# --- never mixed


@pytest.mark.parametrize("count", [2, 8])
def test_threads_get_what_each_would_get_alone(count: int) -> None:
    model = model_of("llama")
    engine, hooks = make_engine(model, slots=6, prefill_tokens=32), hooks_of(model)
    expected = [solo(model, work_of(index)) for index in range(count)]

    def work(index: int) -> list[tuple[int, ...]]:
        requests = work_of(index)
        if index % 3 == 2:
            return [streamed(engine, request) for request in requests]
        if index % 3 == 1:
            tickets = [engine.submit(request) for request in requests]
            return [ticket.result().token_ids for ticket in tickets]
        return [result.token_ids for result in engine.generate(requests)]

    threads = [Thread(lambda index=index: work(index)) for index in range(count)]  # type: ignore[misc]
    assert [thread.end() for thread in threads] == expected
    assert hooks_of(model) == hooks


def test_two_engines_may_share_a_model() -> None:
    model = model_of("gemma2")
    expected = [solo(model, work_of(index)) for index in range(2)]
    engines = [make_engine(model) for _ in range(2)]
    threads = [Thread(lambda i=i: [r.token_ids for r in engines[i].generate(work_of(i))]) for i in range(2)]  # type: ignore[misc]
    assert [thread.end() for thread in threads] == expected


# --- errors


def test_an_error_reaches_all_that_took_part_and_hangs_nobody() -> None:
    model = model_of("llama")
    engine = make_engine(model, slots=4)
    with broken_block(model, RuntimeError("broken"), after=12):
        threads = [Thread(lambda i=i: engine.generate(work_of(i))) for i in range(4)]  # type: ignore[misc]
        outcomes = []
        for thread in threads:
            try:
                outcomes.append([result.token_ids for result in thread.end()])
            except SteersmanError as error:
                outcomes.append(error)
    errors = [outcome for outcome in outcomes if isinstance(outcome, SteersmanError)]
    assert errors
    assert all(isinstance(error.__cause__, RuntimeError) for error in errors)
    for index, outcome in enumerate(outcomes):
        assert isinstance(outcome, SteersmanError) or outcome == solo(model, work_of(index))
    assert [result.token_ids for result in engine.generate(work_of(0))] == solo(model, work_of(0))


def test_an_answer_that_was_whole_is_not_lost_to_an_error_of_the_others() -> None:
    model = model_of("llama")
    engine = make_engine(model)
    # The short one ends while its prompt is read; the same step breaks when the long one is decoded.
    short, long = engine.submit(ask("short", tokens=1)), engine.submit(ask("long", tokens=5))
    with broken_block(model, RuntimeError("broken"), after=1), pytest.raises(SteersmanError, match="broken"):
        long.result()
    assert short.result().token_ids == solo(model, [ask("short", tokens=1)])[0]


def test_an_error_spares_what_was_still_waiting() -> None:
    model = model_of("llama")
    engine = make_engine(model, slots=1)
    first, waiting = engine.submit(ask("first")), engine.submit(ask("waiting"))
    with broken_block(model, RuntimeError("broken"), after=3):
        assert waiting.result().token_ids == solo(model, [ask("waiting")])[0]
    with pytest.raises(SteersmanError, match="broken"):
        first.result()


def test_a_request_whose_memory_cannot_be_had_fails_and_hangs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    engine = make_engine(model)
    other, original = Thread(lambda: None), Runner.new_cache

    def no_memory(runner: Runner) -> Any:
        monkeypatch.setattr(Runner, "new_cache", original)
        raise MemoryError("no memory")

    tickets = [engine.submit(ask(text)) for text in ("one", "two")]
    monkeypatch.setattr(Runner, "new_cache", no_memory)
    for ticket in tickets:
        other = Thread(ticket.result)
        with pytest.raises((SteersmanError, MemoryError)):
            other.end()
    assert engine.generate([ask("next")])[0].token_ids == solo(model, [ask("next")])[0]


def test_an_interrupt_in_one_thread_ends_the_step_and_hangs_nobody() -> None:
    model = model_of("llama")
    engine = make_engine(model)
    # All nine requests read at once and written together are eight passes: the interrupt must come before the last.
    with broken_block(model, KeyboardInterrupt(), after=4):
        threads = [Thread(lambda i=i: engine.generate(work_of(i))) for i in range(3)]  # type: ignore[misc]
        raised: list[BaseException] = []
        for thread in threads:
            try:
                thread.end()
            except (KeyboardInterrupt, SteersmanError) as error:
                raised.append(error)
    assert sum(isinstance(error, KeyboardInterrupt) for error in raised) == 1
    assert [result.token_ids for result in engine.generate(work_of(1))] == solo(model, work_of(1))


def test_a_caller_that_fails_takes_only_its_own_requests_with_it() -> None:
    engine = make_engine(model_of("llama"))
    other = engine.submit(ask("other", tokens=30))

    def angry(_index: int, _result: object) -> None:
        raise LookupError("the caller's own")

    with pytest.raises(LookupError):
        engine.generate([ask("one", tokens=2), ask("two", tokens=300)], on_done=angry)
    assert len(other.result().token_ids) == 30
    assert engine.generate([ask("next", tokens=2)])[0].finish_reason == "length"


# --- ending early


def test_closing_ends_what_another_thread_waits_for() -> None:
    engine = make_engine(model_of("llama"))
    ticket = engine.submit(ask("long", tokens=480))
    thread = Thread(ticket.result)
    while not ticket.sequence.written:
        time.sleep(0.001)
    engine.close()
    result = thread.end()
    assert result.finish_reason == "cancelled"
    assert len(result.token_ids) < 480
    assert engine.generate([ask("next", tokens=3)])[0].finish_reason == "length"


def test_a_request_is_cancelled_from_another_thread() -> None:
    engine = make_engine(model_of("llama"))
    ticket = engine.submit(ask("long", tokens=480))
    thread = Thread(lambda: engine.generate([ask("beside", tokens=100)]))
    while not ticket.sequence.written:
        time.sleep(0.001)
    ticket.cancel()
    result = ticket.result()
    assert result.finish_reason == "cancelled"
    assert result.text == engine.model.decode(result.token_ids)
    assert len(thread.end()[0].token_ids) == 100


class Slow(LanguageModel):
    """A model whose tokenizer dwells on a stop string in other threads than the main one."""

    dwelling = threading.Semaphore(0)

    def decode(self, ids: Sequence[int]) -> str:
        text = super().decode(ids)
        if text.endswith("END") and threading.current_thread() is not threading.main_thread():
            self.dwelling.release()
            time.sleep(0.2)
        return text


def test_text_taken_while_another_thread_writes_it_shows_no_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    slow = Slow(model.hf, model.tokenizer, model.name)
    dictate(monkeypatch, slow, "abEND of it")
    engine = make_engine(slow)
    stream = engine.stream(ask("hello", tokens=12, stop=("END",)))
    shown = next(stream).text
    driver = Thread(lambda: engine.generate([ask("x", tokens=20)]))
    # The stop string is decoded, then decoded again as what is known, and only then looked for.
    for _ in range(2):
        assert slow.dwelling.acquire(timeout=PATIENCE_S)
    shown += "".join(chunk.text for chunk in stream)
    assert shown == "ab"
    driver.end()


def test_threads_of_torch_are_left_as_they_are() -> None:
    before = torch.get_num_threads()
    make_engine(model_of("llama")).generate([ask("hello", push())])
    assert torch.get_num_threads() == before


@pytest.mark.model
def test_with_several_threads_too_an_answer_is_the_same_bit_for_bit_in_any_batch() -> None:
    """In a process of its own, as users have: which thread computes a row depends on how many rows there are."""
    code = """
from steersman import Add, Engine, Recipe, Request, Sampling, chat, load_model
from steersman.steering.vector import Vector
import torch
engine = Engine(load_model())
def push(seed):
    vector = Vector(torch.randn(576, generator=torch.Generator().manual_seed(seed)))
    return Recipe(name=str(seed), edits=(Add(layer=9, vector=vector, strength=0.15),))
brief = Sampling(max_tokens=64)
asked = [Request(prompt=chat(f"What is {n}?"), recipe=push(n), sampling=brief, logprobs=0) for n in range(16)]
bits = lambda results: [[(token.token_id, token.logprob) for token in result.logprobs] for result in results]
together = bits(engine.generate(asked))
assert torch.get_num_threads() == 2
for size in (3, 8):
    parts = [result for at in range(0, 16, size) for result in bits(engine.generate(asked[at : at + size]))]
    print(size, [n for n in range(16) if parts[n] != together[n]])
"""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert made.stdout == "3 []\n8 []\n", made.stderr
