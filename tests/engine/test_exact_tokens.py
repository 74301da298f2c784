"""Conditions, windows and positions count the real tokens of their own sequence, to the exact one."""

from __future__ import annotations

import dataclasses

import pytest
from tests.engine.rig import (
    NORMS,
    SOME_TOKENS,
    ask,
    differs_from,
    make_engine,
    model_of,
    prompts,
    push,
    vector,
    without_cache,
)

from steersman.engine.request import Result
from steersman.models.residuals import read_residuals
from steersman.steering.condition import Above, Not, Since, TokenIs
from steersman.steering.recipe import Recipe
from steersman.steering.target import Direction
from steersman.steering.where import Where


def base(prompt: str = "once upon a time", tokens: int = 12) -> Result:
    return make_engine(model_of("llama")).generate([ask(prompt, tokens=tokens)])[0]


@pytest.mark.parametrize("place", [0, 1, 4, 9])
def test_a_condition_switches_at_the_token_it_names(place: int) -> None:
    baseline = base()
    named = baseline.token_ids[place]
    first = baseline.token_ids.index(named)
    for when in (TokenIs(token_ids=(named,)), Since(item=TokenIs(token_ids=(named,)))):
        result = make_engine(model_of("llama")).generate([ask("once upon a time", push(when=when), tokens=12)])[0]
        # The token is written as before; reading it changes the next one.
        assert differs_from(result, baseline) == first + 1
    before = Not(item=Since(item=TokenIs(token_ids=(named,))))
    recipe = push(when=before, where=Where(scope="generated"))
    result = make_engine(model_of("llama")).generate([ask("once upon a time", recipe, tokens=12)])[0]
    assert differs_from(result, baseline) == (1 if first else len(baseline.token_ids))


@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_window_of_generated_tokens_begins_at_its_token(start: int) -> None:
    # Token 0 of the answer is read when token 1 is written.
    recipe = push(where=Where(scope="generated", start=start))
    for prompt in prompts(3):
        result = make_engine(model_of("llama")).generate([ask(prompt, recipe, tokens=12)])[0]
        assert differs_from(result, base(prompt)) == start + 1


@pytest.mark.parametrize("position", [-1, -2, 5, 17, 20])
def test_a_position_is_a_place_in_the_sequence(position: int) -> None:
    prompt = "once upon a time"
    count = len(prompt)
    result = make_engine(model_of("llama")).generate(
        [ask(prompt, push(where=Where(positions=(position,))), tokens=12)]
    )[0]
    assert differs_from(result, base(prompt)) == max(0, position - count + 1)


def test_a_condition_met_in_the_prompt_holds_while_longer_prompts_are_still_read() -> None:
    # The last chunk holds nothing but padding for the short prompt.
    model, recipe = model_of("llama"), push(when=Since(item=TokenIs(token_ids=tuple(model_of("llama").encode("q")))))
    request = ask("aaqa", recipe)
    together = make_engine(model, idle_prefill_tokens=102).generate([request, ask("b" * 51)])[0]
    assert [item.logprob for item in together.logprobs] == pytest.approx(without_cache(model, request)[1], abs=1e-3)


# --- abort


def test_abort_ends_the_answer_with_the_token_that_meets_it() -> None:
    baseline = base(tokens=20)
    for place in (0, 3, 11):
        named = baseline.token_ids[place]
        recipe = Recipe(name="abort", edits=(), abort=TokenIs(token_ids=(named,)))
        among = [ask(text, push(3), tokens=20) for text in prompts(5)]
        engine = make_engine(model_of("llama"))
        result, *others = engine.generate([ask("once upon a time", recipe, tokens=20), *among])
        stop = baseline.token_ids.index(named) + 1
        assert (result.token_ids, result.finish_reason) == (baseline.token_ids[:stop], "abort")
        assert [other.token_ids for other in others] == [r.token_ids for r in engine.generate(among)]


def test_abort_in_the_prompt_leaves_no_answer() -> None:
    recipe = push(0) + Recipe(name="abort", edits=(), abort=TokenIs(token_ids=tuple(model_of("llama").encode("t"))))
    steered, other = make_engine(model_of("llama")).generate([ask("once upon a time", recipe), ask("once upon a time")])
    assert (steered.token_ids, steered.text, steered.finish_reason) == ((), "", "abort")
    assert other.token_ids == base().token_ids[:8]


def test_abort_holds_at_any_strength() -> None:
    recipe = push() + Recipe(name="abort", edits=(), abort=TokenIs(token_ids=SOME_TOKENS))
    result = make_engine(model_of("llama")).generate([ask("x", recipe, strength=0.0, tokens=50)])[0]
    plain = make_engine(model_of("llama")).generate([ask("x", tokens=50)])[0]
    stop = next(index for index, token in enumerate(plain.token_ids) if token in SOME_TOKENS) + 1
    assert (result.token_ids, result.finish_reason) == (plain.token_ids[:stop], "abort")


@pytest.mark.parametrize("seed", range(12))
def test_padding_meets_no_condition(seed: int) -> None:
    model, plain = model_of("llama"), ask("hello", tokens=4)
    ids, direction = [*model.encode("hello"), *without_cache(model, plain)[0]], vector(seed).unit()
    # Just above what any token of the request shows; the padding behind the prompt often shows more.
    highest = float((read_residuals(model, [ids], [1])[0][1] @ direction.tensor).max()) / NORMS[1]
    above = Above(layer=1, target=Direction(vector=direction), threshold=highest + 1e-3)
    request = dataclasses.replace(plain, recipe=Recipe(name="abort", edits=(), abort=above))
    for requests in ([request], [request, ask("x" * 47)]):
        result = make_engine(model).generate(requests)[0]
        assert ([*model.encode("hello"), *result.token_ids], result.finish_reason) == (ids, "length")
