"""The engine writes what plain generation writes, obeys every setting and limit, and cleans up behind itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.engine.rig import (
    NORMS,
    Passes,
    ask,
    dictate,
    make_engine,
    model_of,
    prompts,
    push,
    without_cache,
)
from tests.tiny import ARCHITECTURES, CONTEXT

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Result, Sampling
from steersman.models.language_model import LanguageModel


def theirs(model: LanguageModel, prompt: str, tokens: int) -> list[int]:
    """What transformers' own `generate` writes, greedily."""
    ids = torch.tensor([model.encode(prompt)])
    settings = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": 0, "eos_token_id": 2}
    return model.hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


# --- the same as plain generation


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_answers_are_those_of_transformers(kind: str) -> None:
    # More requests than slots, prompts longer and shorter than the sliding window, cut into small chunks.
    model = model_of(kind)
    engine = make_engine(model, slots=3, prefill_tokens=8, idle_prefill_tokens=24)
    requests = [ask(prompt, tokens=10, ignore_eos=False) for prompt in prompts(5)]
    assert [list(result.token_ids) for result in engine.generate(requests)] == [
        theirs(model, str(request.prompt), 10) for request in requests
    ]


def test_logprobs_are_those_of_an_independent_forward_pass() -> None:
    model = model_of("llama")
    results = make_engine(model).generate([ask(prompt, logprobs=3) for prompt in prompts(3)])
    for prompt, result in zip(prompts(3), results, strict=True):
        ids = [*model.encode(prompt), *result.token_ids]
        with torch.no_grad():
            expected = (
                model.hf(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)[-len(result.token_ids) - 1 : -1]
            )
        assert [item.token_id for item in result.logprobs] == list(result.token_ids)
        for item, row in zip(result.logprobs, expected, strict=True):
            assert item.logprob == pytest.approx(float(row[item.token_id]), abs=1e-3)
            assert [token for token, _ in item.top] == row.topk(3).indices.tolist()
            assert [value for _, value in item.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


def test_a_long_answer_beside_newcomers_is_what_it_is_alone() -> None:
    # The slab grows several times while rows join and leave it.
    model = model_of("llama")
    long = ask("once upon a time", tokens=300)
    others = [ask(prompt, tokens=20 + 30 * index) for index, prompt in enumerate(prompts(6))]
    engine = make_engine(model, slots=3)
    together = engine.generate([long, *others])
    assert [result.token_ids for result in together] == [
        make_engine(model).generate([request])[0].token_ids for request in (long, *others)
    ]


# --- settings


def test_a_seed_gives_the_same_answer_alone_in_a_batch_and_again() -> None:
    model = model_of("llama")
    requests = [ask(prompt, tokens=12, temperature=5.0, seed=index % 2) for index, prompt in enumerate(prompts(8))]
    together = make_engine(model).generate(requests)
    alone = [make_engine(model).generate([request])[0] for request in requests]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
    assert [result.seed for result in together] == [index % 2 for index in range(8)]
    others = make_engine(model).generate([ask(str(r.prompt), tokens=12, temperature=5.0, seed=7) for r in requests])
    assert all(one.token_ids != other.token_ids for one, other in zip(together, others, strict=True))


def test_an_unseeded_answer_names_the_seed_that_repeats_it() -> None:
    engine = make_engine(model_of("llama"))
    one, other = engine.generate([ask("hello", tokens=12, temperature=5.0, seed=None)] * 2)
    assert one.token_ids != other.token_ids
    for result in (one, other):
        again = engine.generate([ask("hello", tokens=12, temperature=5.0, seed=result.seed)])[0]
        assert again.token_ids == result.token_ids


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_an_answer_has_at_most_max_tokens(tokens: int) -> None:
    result = make_engine(model_of("llama")).generate([ask("hello", tokens=tokens)])[0]
    assert (len(result.token_ids), result.finish_reason, result.prompt_tokens) == (tokens, "length", 5)


def test_an_end_token_ends_the_answer_unless_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    script = dictate(monkeypatch, model, "ab")
    engine = make_engine(model)
    ended = engine.generate([ask("x", tokens=5, ignore_eos=False)])[0]
    assert (ended.text, ended.token_ids, ended.finish_reason) == ("ab", tuple(script), "stop")
    on = engine.generate([ask("x", tokens=5)])[0]
    assert (on.text, len(on.token_ids), on.finish_reason) == ("abab", 5, "length")


@pytest.mark.parametrize(("prompt_tokens", "room"), [(CONTEXT - 1, 1), (CONTEXT - 2, 2), (CONTEXT - 9, 9)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_context_ends_an_answer(kind: str, prompt_tokens: int, room: int) -> None:
    model = model_of(kind)
    request = ask("ab" * (prompt_tokens // 2) + "c" * (prompt_tokens % 2), tokens=50)
    result = make_engine(model).generate([request])[0]
    assert (len(result.token_ids), result.finish_reason) == (room, "length")
    sampling = dataclasses.replace(request.sampling, max_tokens=room)
    assert list(result.token_ids) == without_cache(model, dataclasses.replace(request, sampling=sampling))[0]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"), [(("END",), "A tale, é 🎉 "), (("🎉",), "A tale, é "), (("tale", "END"), "A "), (("zzz",), None)]
)
def test_stop_strings(monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...], text: str | None, streamed: bool) -> None:
    model, whole = model_of("llama"), "A tale, é 🎉 END of it"
    script = dictate(monkeypatch, model, whole)
    request, engine = ask("x", tokens=60, stop=stop, ignore_eos=False), make_engine(model)
    if streamed:
        chunks = list(engine.stream(request))
        result = chunks[-1].result
        assert result is not None
        assert "".join(chunk.text for chunk in chunks) == result.text
        assert not any("�" in chunk.text for chunk in chunks)
    else:
        result = engine.generate([request])[0]
    assert (result.text, result.finish_reason) == (whole if text is None else text, "stop")
    assert list(result.token_ids) == script[: len(result.token_ids)]
    if text is not None:
        assert stop[0] in model.decode(result.token_ids) or stop[-1] in model.decode(result.token_ids)


# --- ways to ask


def test_streamed_pieces_join_to_the_answer() -> None:
    engine = make_engine(model_of("llama"))
    for prompt in prompts(3):
        request = ask(prompt, push(), tokens=20, temperature=3.0, seed=3)
        chunks = list(engine.stream(request))
        assert all(chunk.result is None for chunk in chunks[:-1])
        assert chunks[-1].result == engine.generate([request])[0]
        assert "".join(chunk.text for chunk in chunks) == chunks[-1].result.text


def test_results_come_in_order_and_are_told_as_they_end() -> None:
    engine, told = make_engine(model_of("llama"), slots=2), list[tuple[int, Result]]()
    requests = [ask("a", tokens=9), ask("b", tokens=2), ask("c", tokens=3)]
    results = engine.generate(requests, on_done=lambda index, result: told.append((index, result)))
    assert [len(result.token_ids) for result in results] == [9, 2, 3]
    assert [index for index, _ in told] == [1, 2, 0]
    assert all(results[index] == result for index, result in told)
    assert engine.generate([]) == []


def test_a_request_may_be_left_and_fetched_later() -> None:
    model = model_of("llama")
    engine = make_engine(model)
    early = engine.submit(ask("early", tokens=4))
    assert not early.is_done
    late = engine.generate([ask("late")])[0]
    assert early.is_done
    assert [early.result().token_ids, late.token_ids] == [
        make_engine(model).generate([request])[0].token_ids for request in (ask("early", tokens=4), ask("late"))
    ]


def test_a_chat_is_answered_through_the_template() -> None:
    model = model_of("llama")
    chat = [{"role": "user", "content": "hi"}]
    asked, raw = make_engine(model).generate([ask(chat), ask(model.render(chat).removeprefix("<s>"))])  # type: ignore[arg-type]
    assert asked.prompt_tokens == raw.prompt_tokens + 1
    assert list(asked.token_ids) == without_cache(model, ask(chat))[0]


# --- limits


def test_prompts_do_not_stall_running_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama"), slots=4, prefill_tokens=16), Passes(monkeypatch)
    running = engine.stream(ask("hello", tokens=60))
    next(running)
    passes.shapes.clear()
    tickets = [engine.submit(ask(prompt, tokens=2)) for prompt in ("x" * 100, "y" * 5, "z" * 50)]
    for _ in running:
        pass
    assert all(ticket.is_done for ticket in tickets)
    read = [rows * columns for rows, columns in passes.shapes if columns > 1]
    assert sum(read) >= 155
    # Never more of the prompts without a token of the running answer in between.
    between = [0]
    for rows, columns in passes.shapes:
        between = [*between[:-1], between[-1] + rows * columns] if columns > 1 else [*between, 0]
    assert max(between) <= 16


def test_no_more_requests_run_than_there_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama"), slots=3), Passes(monkeypatch)
    results = engine.generate([ask(prompt, tokens=5) for prompt in prompts(10)])
    assert [len(result.token_ids) for result in results] == [5] * 10
    assert max(rows for rows, _ in passes.shapes) == 3


def test_memory_stays_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama"), slots=16, kv_tokens=600), Passes(monkeypatch)
    engine.generate([ask("x" * 20, tokens=100) for _ in range(8)])
    assert max(rows for rows, columns in passes.shapes if columns == 1) == 5
    # Columns are reserved 128 at a time.
    assert max(passes.slab_tokens) <= 5 * 128


def test_a_long_request_runs_alone_and_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama"), slots=16, kv_tokens=600), Passes(monkeypatch)
    long = engine.generate([ask("x" * 400, tokens=80), ask("y", tokens=4)])[0]
    assert len(long.token_ids) == 80
    assert max(passes.slab_tokens) <= 2 * 512
    passes.slab_tokens.clear()
    engine.generate([ask(prompt, tokens=4) for prompt in prompts(12, longest=20)])
    assert max(passes.slab_tokens) <= 12 * 128


def test_an_engine_measures_the_profile_it_is_not_given(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = model_of("llama")
    engine = Engine(model, cache=tmp_path)
    assert len(engine.profile.mean_norms) == len(NORMS)
    assert Engine(model, cache=tmp_path).profile == engine.profile
    plain = Request(prompt="x", sampling=Sampling(max_tokens=2))
    assert engine.generate([plain])[0].token_ids == make_engine(model).generate([plain])[0].token_ids
