"""Anything may run beside anything: requests of all sorts, handed in, streamed, cancelled and fetched at random."""

from __future__ import annotations

import dataclasses
import random
import string

import pytest
from tests.engine.rig import ask, conditions, make_engine, model_of, recipes

from steersman.engine.engine import Engine
from steersman.engine.guard import Guard
from steersman.engine.request import Request, Result

Answered = list[tuple[Request, Result]]
RECIPES = recipes(thin=4)


def some_request(chance: random.Random) -> Request:
    """Any prompt length, recipe, abort, strength, guard, sampling and number of tokens."""
    recipe = chance.choice([None, *RECIPES[:: chance.randint(1, 60)]])
    if recipe is not None and chance.random() < 0.2:
        recipe = dataclasses.replace(recipe, abort=chance.choice(conditions()[1:]))
    guard = Guard(
        mode=chance.choice(["off", "off", "warn", "soften", "stop"]),
        every_tokens=chance.choice([1, 3, 8]),
        min_logprob=chance.choice([-3.0, -4.0, None]),
    )
    return ask(
        "".join(chance.choices(string.ascii_lowercase, k=chance.choice([1, 2, 5, 13, 70, 127, 129]))),
        recipe,
        tokens=chance.choice([1, 2, 7, 20, 80]),
        temperature=chance.choice([0.0, 5.0]),
        seed=chance.randrange(1000),
        strength=chance.choice([1.0, 0.5, 0.0, -1.0]),
        guard=guard,
        ignore_eos=chance.random() < 0.5,
    )


def some_use(engine: Engine, chance: random.Random) -> Answered:
    """Use the engine in any order; what was answered whole."""
    handed_in, answered = [], []
    for _ in range(chance.randrange(4, 16)):
        request, way = some_request(chance), chance.random()
        if way < 0.6:
            handed_in.append((request, engine.submit(request)))
        elif way < 0.85:
            text, patience = "", chance.choice([2, 1000])
            for _, chunk in zip(range(patience), engine.stream(request), strict=False):
                text += chunk.text
                if chunk.result is not None:
                    assert text == chunk.result.text
                    answered.append((request, chunk.result))
        elif handed_in:
            request, ticket = handed_in.pop(chance.randrange(len(handed_in)))
            if chance.random() < 0.5:
                ticket.cancel()
            else:
                answered.append((request, ticket.result()))
    return answered + [(request, ticket.result()) for request, ticket in handed_in]


@pytest.mark.parametrize("round_", range(8))
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_every_answer_is_the_one_given_alone(kind: str, round_: int) -> None:
    model, chance = model_of(kind), random.Random(f"{kind}{round_}")
    engine = make_engine(
        model,
        slots=chance.choice([1, 2, 3, 16]),
        kv_tokens=chance.choice([300, 1000, 40_000]),
        prefill_tokens=chance.choice([1, 5, 64, 512]),
        idle_prefill_tokens=chance.choice([1, 7, 102, 2048]),
    )
    for request, result in some_use(engine, chance):
        alone = make_engine(model).generate([request])[0]
        assert (result.token_ids, result.text, result.finish_reason, result.strength) == (
            alone.token_ids,
            alone.text,
            alone.finish_reason,
            alone.strength,
        )
