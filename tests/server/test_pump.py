"""One thread answers everybody: as the engine would, each apart, nobody waits forever, nobody's end is another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest
from tests.engine.rig import KINDS, ask, broken_block, edit_of, hooks_of, make_engine, model_of, prompts, push

from steersman.engine.engine import Engine
from steersman.engine.request import Chunk, Request, Result
from steersman.errors import Busy, RecipeMismatch, RequestError
from steersman.server.pump import Feed, Pump
from steersman.steering.recipe import Recipe

PATIENCE_S = 60.0


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine to its end; it fails when it hangs."""
    return asyncio.run(asyncio.wait_for(work(), PATIENCE_S))


def sixteen() -> list[Request]:
    """16 requests with 16 recipes of every kind, sampled and greedy."""
    return [
        ask(
            text,
            Recipe(name=f"r{index}", edits=(edit_of(KINDS[index % len(KINDS)], 30 + index, layer=1 + index % 2),)),
            10 + index % 5,
            temperature=1.0 * (index % 2),
            seed=index,
        )
        for index, text in enumerate(prompts(16))
    ]


def solo(requests: Sequence[Request]) -> list[Result]:
    return [make_engine(model_of("llama")).generate([request])[0] for request in requests]


def kept(result: Result) -> tuple[object, ...]:
    """What does not change in the last bit with what else is in the batch."""
    return result.text, result.token_ids, result.finish_reason, result.seed, result.strength


async def stream_of(pump: Pump, request: Request) -> AsyncIterator[Chunk]:
    """One answer piece by piece, as a route reads it; leaving early cancels it."""
    feed = await pump.open([request], stream=True)
    try:
        async for pieces in feed:
            for _, chunk in pieces:
                yield chunk
    finally:
        feed.cancel()


async def streamed(pump: Pump, request: Request) -> Result:
    chunks = [chunk async for chunk in stream_of(pump, request)]
    result = chunks[-1].result
    assert result is not None
    assert "".join(chunk.text for chunk in chunks) == result.text
    return result


def long(index: int = 0) -> Request:
    """A request that runs until somebody ends it."""
    return ask(f"long {index}", tokens=480)


async def is_soon(condition: Callable[[], bool]) -> bool:
    """Whether it holds within seconds."""
    for _ in range(500):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


async def begun(pump: Pump, request: Request) -> tuple[Any, Chunk]:
    """A stream whose first piece is there."""
    stream = stream_of(pump, request)
    return stream, await anext(stream)


# --- everybody gets their own


@pytest.mark.parametrize("slots", [16, 5])
def test_sixteen_streams_with_sixteen_recipes_are_what_each_would_be_alone(slots: int) -> None:
    model = model_of("llama")
    hooks, pump = hooks_of(model), Pump(make_engine(model, slots=slots), max_queue=16)

    async def work() -> list[Result]:
        return await asyncio.gather(*(streamed(pump, request) for request in sixteen()))

    found = run(work)
    pump.close()
    assert [kept(result) for result in found] == [kept(result) for result in solo(sixteen())]
    assert hooks_of(model) == hooks


def test_whole_answers_are_the_streamed_ones() -> None:
    pump = Pump(make_engine(model_of("llama")), max_queue=16)

    async def work() -> tuple[list[Result], list[Result]]:
        apart = asyncio.gather(*(pump.generate(request) for request in sixteen()[:8]))
        return await apart, await pump.generate_all(sixteen()[8:])

    one, other = run(work)
    pump.close()
    assert [kept(result) for result in [*one, *other]] == [kept(result) for result in solo(sixteen())]


def test_a_feed_tells_its_requests_apart() -> None:
    pump = Pump(make_engine(model_of("llama"), slots=3), max_queue=16)

    async def work() -> tuple[dict[int, str], dict[int, Result]]:
        texts, results = dict.fromkeys(range(6), ""), {}
        async for pieces in await pump.open(sixteen()[:6], stream=True):
            for index, chunk in pieces:
                texts[index] += chunk.text
                if chunk.result is not None:
                    results[index] = chunk.result
        return texts, results

    texts, results = run(work)
    pump.close()
    expected = solo(sixteen()[:6])
    assert [texts[index] for index in range(6)] == [result.text for result in expected]
    assert [kept(results[index]) for index in range(6)] == [kept(result) for result in expected]


def test_one_wake_up_a_step_serves_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(model_of("llama"))
    pump, steps, original = Pump(engine, max_queue=16), [0], engine.step

    def step() -> None:
        steps[0] += 1
        original()

    monkeypatch.setattr(engine, "step", step)

    async def work() -> int:
        feeds = [await pump.open([request], stream=True) for request in sixteen()]
        loop, wakes = asyncio.get_running_loop(), [0]
        call: Callable[..., Any] = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            wakes[0] += threading.current_thread().name == "steersman-pump"
            return call(*args, **kwargs)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)

        async def read(feed: Feed) -> None:
            async for _ in feed:
                pass

        await asyncio.gather(*map(read, feeds))
        return wakes[0]

    wakes = run(work)
    pump.close()
    # Tokens, not pieces: whoever reads late gets several tokens in one piece.
    tokens = sum(len(result.token_ids) for result in solo(sixteen()))
    assert 0 < wakes <= steps[0] < tokens / 2


def test_a_background_job_and_the_pump_share_an_engine() -> None:
    engine = make_engine(model_of("llama"), slots=6)
    pump, answers = Pump(engine, max_queue=16), []
    job = threading.Thread(target=lambda: answers.extend(engine.generate(sixteen())), daemon=True)
    job.start()

    async def work() -> list[Result]:
        return await asyncio.gather(*(streamed(pump, request) for request in sixteen()))

    found = run(work)
    job.join(PATIENCE_S)
    pump.close()
    expected = [kept(result) for result in solo(sixteen())]
    assert [kept(result) for result in found] == [kept(result) for result in answers] == expected


def test_two_event_loops_share_a_pump() -> None:
    pump, found = Pump(make_engine(model_of("llama")), max_queue=16), {}

    def loop(index: int) -> None:
        found[index] = run(lambda: streamed(pump, sixteen()[index]))

    threads = [threading.Thread(target=loop, args=(index,), daemon=True) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    pump.close()
    assert [kept(found[index]) for index in range(3)] == [kept(result) for result in solo(sixteen()[:3])]


# --- leaving


def test_leaving_a_stream_gives_its_slot_to_the_next() -> None:
    pump = Pump(make_engine(model_of("llama"), slots=1), max_queue=4)

    async def work() -> Result:
        stream, _ = await begun(pump, long())
        waiting = asyncio.create_task(pump.generate(ask("next")))
        assert await is_soon(lambda: (pump.running, pump.waiting) == (1, 1))
        await stream.aclose()
        result = await waiting
        assert await is_soon(lambda: (pump.running, pump.waiting) == (0, 0))
        return result

    assert kept(run(work)) == kept(solo([ask("next")])[0])
    pump.close()


@pytest.mark.parametrize("runs", [True, False])
def test_a_cancelled_task_takes_its_requests_with_it(runs: bool) -> None:
    pump = Pump(make_engine(model_of("llama"), slots=2), max_queue=4)

    async def work() -> None:
        others = [await begun(pump, long(index)) for index in range(0 if runs else 2)]
        task = asyncio.create_task(pump.generate_all([long(7), long(8)]))
        assert await is_soon(lambda: pump.running + pump.waiting == 2 + len(others))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await is_soon(lambda: (pump.running, pump.waiting) == (len(others), 0))
        for stream, _ in others:
            await stream.aclose()
        assert await is_soon(lambda: pump.running == 0)

    run(work)
    pump.close()


def test_a_reader_who_is_told_to_stop_does_not_wait_on() -> None:
    pump = Pump(make_engine(model_of("llama"), slots=1), max_queue=4)

    async def work() -> None:
        stream, _ = await begun(pump, long())
        feed = await pump.open([ask("waits")], stream=True)
        reader = asyncio.create_task(anext(feed, None))
        await asyncio.sleep(0.05)
        feed.cancel()
        assert await reader is None
        assert pump.waiting == 0
        await stream.aclose()

    run(work)
    pump.close()


# --- too much, and the end


def test_too_many_are_refused_and_nothing_of_them_runs() -> None:
    pump = Pump(make_engine(model_of("llama"), slots=2), max_queue=1)

    async def work() -> None:
        streams = [await begun(pump, long(index)) for index in range(2)]
        with pytest.raises(Busy) as refused:
            await pump.open([ask("one"), ask("two")], stream=False)
        assert refused.value.retry_after_s > 0
        assert not refused.value.is_callers
        assert (pump.running, pump.waiting) == (2, 0)
        third = asyncio.create_task(pump.generate(ask("third")))
        assert await is_soon(lambda: pump.waiting == 1)
        with pytest.raises(Busy):
            await pump.generate(ask("fourth"))
        for stream, _ in streams:
            await stream.aclose()
        assert (await third).finish_reason == "length"
        assert (await pump.generate(ask("fourth"))).finish_reason == "length"

    run(work)
    pump.close()


def test_draining_finishes_what_was_taken_in_and_takes_no_more() -> None:
    pump = Pump(make_engine(model_of("llama"), slots=4), max_queue=16)

    async def work() -> list[Result]:
        tasks = [asyncio.create_task(streamed(pump, request)) for request in sixteen()]
        assert await is_soon(lambda: pump.running + pump.waiting == 16)
        draining = asyncio.create_task(pump.drain(PATIENCE_S))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="stopping"):
            await pump.generate(ask("late"))
        assert await draining
        return await asyncio.gather(*tasks)

    assert [kept(result) for result in run(work)] == [kept(result) for result in solo(sixteen())]
    pump.close()


@pytest.mark.parametrize("way", ["drain", "close"])
def test_who_is_cut_off_by_the_end_is_told(way: str) -> None:
    pump = Pump(make_engine(model_of("llama"), slots=1), max_queue=4)

    async def work() -> list[Any]:
        stream, _ = await begun(pump, long())
        waiting = asyncio.create_task(pump.generate(ask("waits")))
        assert await is_soon(lambda: pump.waiting == 1)
        if way == "drain":
            assert not await pump.drain(0.0)
        else:
            await asyncio.to_thread(pump.close)

        async def rest() -> None:
            async for _ in stream:
                pass

        return await asyncio.gather(rest(), waiting, return_exceptions=True)

    assert [type(outcome) for outcome in run(work)] == [Busy, Busy]
    pump.close()


def test_closing_ends_the_thread_and_may_be_done_twice() -> None:
    before = threading.active_count()
    pump = Pump(make_engine(model_of("llama")), max_queue=4)
    pump.close()
    pump = Pump(make_engine(model_of("llama")), max_queue=4)

    async def work() -> None:
        await pump.generate(ask("hello"))
        await asyncio.to_thread(pump.close)
        await asyncio.to_thread(pump.close)
        with pytest.raises(Busy):
            await pump.generate(ask("hello"))

    run(work)
    assert threading.active_count() == before


def test_a_loop_that_is_gone_holds_nobody_up() -> None:
    pump = Pump(make_engine(model_of("llama"), slots=1), max_queue=4)

    async def leave() -> Feed:
        return await pump.open([long()], stream=True)

    feed = run(leave)
    assert feed.loop.is_closed()
    assert run(lambda: pump.generate(ask("next"))).finish_reason == "length"
    pump.close()


# --- errors


def test_a_wrong_request_is_refused_before_anything_runs() -> None:
    pump = Pump(make_engine(model_of("llama")), max_queue=4)
    other = Recipe(name="other", edits=push().edits, model=model_of("gpt2").ref)

    async def work() -> None:
        with pytest.raises(RequestError, match="empty"):
            await pump.open([ask("fine"), ask("")], stream=True)
        with pytest.raises(RecipeMismatch):
            await pump.generate(ask("hello", other))
        assert (pump.running, pump.waiting) == (0, 0)

    run(work)
    pump.close()


def test_a_step_that_breaks_fails_those_in_it_with_what_broke_and_nobody_else() -> None:
    model = model_of("llama")
    pump = Pump(make_engine(model, slots=2), max_queue=4)

    async def work() -> list[Any]:
        feeds = [await pump.open([long(index)], stream=True) for index in range(2)]
        waiting = asyncio.create_task(pump.generate(ask("waiting")))
        for feed in feeds:
            await anext(feed)

        async def rest(feed: Feed) -> None:
            async for _ in feed:
                pass

        with broken_block(model, RuntimeError("broken")):
            return await asyncio.gather(*map(rest, feeds), waiting, return_exceptions=True)

    first, second, waiting = run(work)
    pump.close()
    assert [(type(error), str(error)) for error in (first, second)] == [(RuntimeError, "broken")] * 2
    assert kept(waiting) == kept(solo([ask("waiting")])[0])


def test_an_engine_that_is_broken_itself_hangs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Engine = make_engine(model_of("llama"))
    pump = Pump(engine, max_queue=4)

    async def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_admit", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await pump.generate(ask("hello"))
        assert (await pump.generate(ask("hello"))).finish_reason == "length"

    run(work)
    pump.close()


def test_an_answer_that_turns_out_wrong_is_told_to_its_caller_alone() -> None:
    pump = Pump(make_engine(model_of("llama")), max_queue=4)

    async def work() -> list[Any]:
        asked = [pump.generate(ask("hello", push(), strength=1e300)), pump.generate(ask("beside", tokens=20))]
        return await asyncio.gather(*asked, return_exceptions=True)

    wrong, fine = run(work)
    pump.close()
    assert isinstance(wrong, RequestError)
    assert "lower the strength" in str(wrong)
    assert kept(fine) == kept(solo([ask("beside", tokens=20)])[0])
