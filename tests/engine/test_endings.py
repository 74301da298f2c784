"""However an answer ends (failed, interrupted, abandoned, cancelled, closed), the engine is left clean and works on."""

from __future__ import annotations

import pytest
from tests.engine.rig import Passes, ask, broken_block, hooks_of, make_engine, model_of, prompts, push, without_cache

from steersman.errors import SteersmanError


def test_no_hook_is_left_behind() -> None:
    model = model_of("llama")
    engine, hooks = make_engine(model), hooks_of(model)
    engine.generate([ask("hello", push())])
    assert hooks_of(model) == hooks
    stream = engine.stream(ask("hello", push(), tokens=50))
    next(stream)
    assert hooks_of(model) == hooks
    stream.close()  # type: ignore[attr-defined]
    assert hooks_of(model) == hooks
    with broken_block(model, RuntimeError("broken"), after=3), pytest.raises(Exception, match="broken"):
        engine.generate([ask("hello", push())])
    assert hooks_of(model) == hooks


def test_an_error_inside_the_model_comes_as_one_of_ours_with_its_cause() -> None:
    model = model_of("llama")
    engine = make_engine(model)
    with broken_block(model, ValueError("broken"), after=2), pytest.raises(SteersmanError, match="broken") as caught:
        engine.generate([ask("hello")])
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_the_engine_works_on_after_a_failure(after: int, error: BaseException) -> None:
    model = model_of("llama")
    engine, requests = make_engine(model, slots=2), [ask(prompt, push()) for prompt in prompts(4)]
    expected = make_engine(model).generate(requests)
    with broken_block(model, error, after=after), pytest.raises((SteersmanError, RuntimeError, KeyboardInterrupt)):
        engine.generate(requests)
    assert [result.token_ids for result in engine.generate(requests)] == [result.token_ids for result in expected]


def test_an_abandoned_stream_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama"), slots=1), Passes(monkeypatch)
    stream = engine.stream(ask("abandoned", tokens=400))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    passes.shapes.clear()
    engine.generate([ask("next", tokens=3)])
    assert len(passes.shapes) == 3


def test_a_stream_that_nobody_reads_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama")), Passes(monkeypatch)
    stream = engine.stream(ask("unread", tokens=400))
    del stream
    engine.generate([ask("next", tokens=3)])
    assert max(rows for rows, columns in passes.shapes if columns > 1) == 1


def test_closing_cancels_what_waits_and_runs() -> None:
    model = model_of("llama")
    with make_engine(model, slots=1) as engine:
        running = engine.stream(ask("running", tokens=50))
        next(running)
        waiting = engine.submit(ask("waiting", tokens=50))
    last = [chunk.result for chunk in running][-1]
    for result in (last, waiting.result()):
        assert result is not None
        assert result.finish_reason == "cancelled"
    fresh = ask("fresh", tokens=4)
    assert list(engine.generate([fresh])[0].token_ids) == without_cache(model, fresh)[0]


def test_what_was_written_before_a_cancellation_stays() -> None:
    engine = make_engine(model_of("llama"), slots=2)
    ticket = engine.submit(ask("one", tokens=50))
    engine.generate([ask("two", tokens=5)])
    ticket.cancel()
    result = ticket.result()
    assert result.finish_reason == "cancelled"
    assert 4 <= len(result.token_ids) <= 6


def test_a_cancelled_request_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama")), Passes(monkeypatch)
    ticket = engine.submit(ask("cancelled"))
    ticket.cancel()
    engine.generate([ask("other")])
    assert ticket.result().token_ids == ()
    assert max(rows for rows, columns in passes.shapes if columns > 1) == 1
