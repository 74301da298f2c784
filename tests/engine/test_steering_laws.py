"""Steering is the same with the cache and without, alone and among others, and is nothing at strength 0."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
import torch
from tests.engine.rig import (
    KINDS,
    SCHEDULES,
    ask,
    bits,
    edit_of,
    make_engine,
    model_of,
    prompts,
    push,
    recipes,
    vector,
    without_cache,
)
from tests.tiny import ARCHITECTURES

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Result
from steersman.errors import RequestError
from steersman.models.language_model import LanguageModel
from steersman.steering import ops
from steersman.steering.condition import TokenIs
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector
from steersman.steering.where import Decay, Ramp, Where

# --- cache on equals cache off


@pytest.mark.parametrize("part", range(4))
def test_cached_and_batched_answers_are_those_of_full_forward_passes(part: int) -> None:
    # Every edit kind with every where, schedule and condition: 16 at a time, prompts of many lengths, cut into chunks.
    model = model_of("llama")
    found = recipes(thin=4)[part::4]
    texts = prompts(len(found), longest=30)
    requests = [ask(text, recipe, tokens=6) for text, recipe in zip(texts, found, strict=True)]
    results = make_engine(model, prefill_tokens=48, idle_prefill_tokens=120).generate(requests)
    steered = 0
    for request, result in zip(requests, results, strict=True):
        tokens, logprobs, reason = without_cache(model, request)
        assert list(result.token_ids) == tokens, request.recipe
        assert [item.logprob for item in result.logprobs] == pytest.approx(logprobs, abs=2e-3), request.recipe
        assert result.finish_reason == reason
        steered += tokens != without_cache(model, dataclasses.replace(request, recipe=None))[0]
    assert steered > len(found) / 3


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_same_on_other_architectures(kind: str) -> None:
    model = model_of(kind)
    requests = [ask(text, r, tokens=6) for text, r in zip(prompts(12), recipes(thin=73)[:12], strict=True)]
    results = make_engine(model, idle_prefill_tokens=40).generate(requests)
    assert [list(result.token_ids) for result in results] == [without_cache(model, r)[0] for r in requests]


# --- strength 0


def never(**common: object) -> Recipe:
    """A recipe that would end the answer at a token that does not exist."""
    return Recipe(name="never", edits=(), abort=TokenIs(token_ids=(10**6,)), **common)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_is_the_baseline_bit_for_bit(kind: str) -> None:
    engine, texts = make_engine(model_of("llama")), prompts(4)
    baseline = engine.generate([ask(text) for text in texts])
    recipe = Recipe(name=kind, edits=tuple(edit_of(kind, 5, layer=layer, schedule=SCHEDULES[2]) for layer in (0, 2)))
    half = dataclasses.replace(recipe, abort=never().abort)
    for requests in (
        [ask(text, recipe, strength=0.0) for text in texts],
        [ask(text, 0.0 * recipe) for text in texts],
        [ask(text, 0.0 * half) for text in texts],
        [ask(text, half, strength=0.0) for text in texts],
        [ask(text, never()) for text in texts],
    ):
        assert [bits(result) for result in engine.generate(requests)] == [bits(result) for result in baseline]
    steered = engine.generate([ask(text, recipe) for text in texts])
    assert all(bits(one) != bits(other) for one, other in zip(steered, baseline, strict=True))


def test_a_window_that_holds_no_token_is_the_baseline_bit_for_bit() -> None:
    engine = make_engine(model_of("llama"))
    baseline = bits(engine.generate([ask("hello")])[0])
    for nowhere in (
        Where(start=100),
        Where(scope="generated", start=50),
        Where(positions=(0,)),
        Where(token_ids=(383,)),
    ):
        recipe = Recipe(name="nowhere", edits=tuple(edit_of(k, 3, layer=1, where=nowhere) for k in KINDS))
        assert bits(engine.generate([ask("hello", recipe)])[0]) == baseline


# --- a request among others


def mixed(model: LanguageModel, count: int, tokens: int = 8) -> list[Request]:
    """Requests with prompts of many lengths, no two alike, with every kind of recipe and some with none."""
    found: Sequence[Recipe | None] = recipes(thin=8)
    return [
        ask(text, None if index % 5 == 4 else found[(37 * index) % len(found)], tokens=3 + (5 * index) % tokens)
        for index, text in enumerate(prompts(count, longest=60))
    ]


def joining(engine: Engine, requests: Sequence[Request], first_tokens: int = 60) -> list[Result]:
    """Answer the requests, handing them in one by one while the first one is being written."""
    tickets = []
    first = dataclasses.replace(
        requests[0], sampling=dataclasses.replace(requests[0].sampling, max_tokens=first_tokens)
    )
    for index, _ in enumerate(engine.stream(first)):
        if index + 1 < len(requests) and index % 2 == 0:
            tickets.append(engine.submit(requests[1 + index // 2]))
    handed_in = len(tickets)
    return [*(ticket.result() for ticket in tickets), *engine.generate(requests[1 + handed_in :])]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_answer_is_the_same_alone_and_among_others(kind: str) -> None:
    model = model_of(kind)
    requests = mixed(model, 20)
    alone = [make_engine(model).generate([request])[0].token_ids for request in requests]
    engine = make_engine(model, slots=16, prefill_tokens=32, idle_prefill_tokens=128)
    assert [result.token_ids for result in engine.generate(requests)] == alone
    assert [result.token_ids for result in joining(engine, requests)] == alone[1:]
    assert [result.token_ids for result in engine.generate(requests[::-1])] == alone[::-1]


def test_unsteered_rows_of_a_steered_batch_are_untouched() -> None:
    engine, texts = make_engine(model_of("llama")), prompts(12)
    plain = engine.generate([ask(text) for text in texts])
    found = recipes(thin=8)
    steered = engine.generate(
        [ask(t, None if i % 3 == 0 else found[(31 * i) % len(found)]) for i, t in enumerate(texts)]
    )
    assert [bits(result) for result in steered[::3]] == [bits(result) for result in plain[::3]]
    assert [bits(result) for result in steered] != [bits(result) for result in plain]


@pytest.mark.parametrize("scope", ["all", "generated"])
def test_what_one_request_breaks_does_not_spread(scope: str) -> None:
    # Numbers beyond float32 in one row, and what they leave in the slab, are no business of the others.
    engine = make_engine(model_of("llama"), slots=4)
    expected = [result.token_ids for result in engine.generate([ask(text, push()) for text in prompts(3)])]
    broken = push(where=Where(scope=scope))  # type: ignore[arg-type]
    wild = engine.submit(ask("a rather long prompt, longer than all the others", broken, strength=1e300, tokens=40))
    beside = engine.generate([ask(text, push()) for text in prompts(3)])
    with pytest.raises(RequestError, match="strength"):
        wild.result()
    after = engine.generate([ask(text, push()) for text in prompts(3)])
    assert [result.token_ids for result in beside] == expected
    assert [result.token_ids for result in after] == expected


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("columns", [1, 4, 7, 16, 33])
def test_what_an_edit_does_to_a_token_does_not_depend_on_the_shape_around_it(rows: int, columns: int) -> None:
    hidden = torch.randn(16, 40, 32, generator=torch.Generator().manual_seed(0)) * 10
    toward = torch.stack([vector(seed).unit().tensor for seed in range(16)])
    gain, degrees = torch.ones(16, 40), torch.full((16,), 25.0)
    whole = ops.rotate(hidden, toward, degrees, gain)[:rows, :columns]
    part = ops.rotate(hidden[:rows, :columns], toward[:rows], degrees[:rows], gain[:rows, :columns])
    assert torch.equal(part, whole)
    index = torch.arange(40).expand(16, -1) + torch.arange(16)[:, None]
    for schedule in (Decay(half_life_tokens=3.7, floor=0.1), Ramp(tokens=7, start=0.3)):
        assert torch.equal(schedule.gains(index[:rows, :columns]), schedule.gains(index)[:rows, :columns])


@pytest.mark.model
def test_on_the_bundled_model_an_answer_is_the_same_alone_and_among_others_bit_for_bit(bundled: LanguageModel) -> None:
    width, chance = bundled.d_model, random.Random(0)
    lengths = [1, 2, 3, 4, 5, 7, 9, 15, 16, 17, 31, 33, 48, 63, 65, 90]
    words = bundled.encode("the of a river and old tower where seven wizards watched brown foxes jump over lazy dogs")
    found = recipes(width, thin=10)
    requests = [
        ask(
            bundled.decode(chance.choices(words, k=length)),
            None if index % 5 == 0 else found[(13 * index) % len(found)],
            tokens=4 + index % 3,
            temperature=index % 2,
        )
        for index, length in enumerate(lengths)
    ]
    engine = Engine(bundled)
    alone = [bits(engine.generate([request])[0]) for request in requests]
    assert [bits(result) for result in engine.generate(requests)] == alone
    assert [bits(result) for result in joining(engine, requests, first_tokens=25)] == alone[1:]


# --- factors


def test_the_factor_of_a_request_is_that_of_its_recipe() -> None:
    model = model_of("llama")
    edits = tuple(edit_of(kind, 11, layer=1) for kind in KINDS)
    recipe, engine = Recipe(name="all", edits=edits), make_engine(model)
    for factor in (-1.0, 0.3, 2.0):
        one, other = engine.generate([ask("hello", recipe, strength=factor), ask("hello", factor * recipe)])
        assert one.token_ids == other.token_ids
        assert [x.logprob for x in one.logprobs] == pytest.approx([x.logprob for x in other.logprobs], abs=1e-3)


def test_strength_counts_in_mean_residual_norms() -> None:
    engine = make_engine(model_of("llama"))
    for layer in (0, 3):
        unit = vector(1).unit().tensor * engine.profile.mean_norms[layer]
        raw = Recipe(name="raw", edits=(Add(layer=layer, vector=Vector(unit), unit="raw"),))
        one, other = engine.generate([ask("hello", raw), ask("hello", push(1, strength=1.0, layer=layer))])
        assert [x.logprob for x in one.logprobs] == pytest.approx([x.logprob for x in other.logprobs], abs=1e-3)
