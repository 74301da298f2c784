"""Wrong requests are refused in one line before anything runs, and disturb nobody; everything else works."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.rig import Passes, ask, make_engine, model_of, push, vector
from tests.tiny import CONTEXT, D_MODEL, N_LAYERS, tiny_tokenizer

from steersman.engine.engine import EngineLimits
from steersman.engine.guard import Guard
from steersman.engine.request import Request, Sampling
from steersman.errors import RecipeMismatch, RequestError, SteersmanError
from steersman.models.language_model import LanguageModel, ModelRef
from steersman.steering.condition import Above
from steersman.steering.recipe import Recipe
from steersman.steering.target import Direction

NAN, INF = math.nan, math.inf


def refused(error: SteersmanError) -> None:
    """One line, with a full sentence in it."""
    assert "\n" not in str(error)
    assert len(str(error)) > 20


# --- settings


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, NAN, INF, -INF, 101.0, 1e300]),
        ("top_p", [0.0, -0.5, 1.01, NAN, INF]),
        ("top_k", [-1, -(10**30)]),
        ("repetition_penalty", [0.0, -1.0, NAN, INF, 1e9]),
        ("max_tokens", [0, -1, -(10**30)]),
        ("seed", [-1, 2**63]),
        ("stop", [("",), ("a", ""), ("x",) * 17, "END"]),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=field) as caught:
            Sampling(**{field: value})
        refused(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("every_tokens", 0),
        ("window_tokens", 3),
        ("max_repetition", -0.1),
        ("max_repetition", 1.1),
        ("max_repetition", NAN),
        ("min_logprob", 0.0),
        ("min_logprob", -INF),
        ("min_logprob", NAN),
        ("soften_by", 1.0),
        ("soften_by", 0.96),
        ("soften_by", -0.1),
        ("soften_by", NAN),
    ],
)
def test_a_guard_that_makes_no_sense_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        Guard(mode="soften", **{field: value})  # type: ignore[arg-type]
    refused(caught.value)


@pytest.mark.parametrize("mode", ["", "of", "Stop", None])
def test_an_unknown_guard_mode_is_refused(mode: Any) -> None:
    with pytest.raises(RequestError, match="mode"):
        Guard(mode=mode)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineLimits)])
def test_limits_below_one_are_refused(field: str) -> None:
    for value in (0, -5):
        with pytest.raises(RequestError, match=field):
            EngineLimits(**{field: value})


@pytest.mark.parametrize(
    "settings", [{"strength": NAN}, {"strength": INF}, {"logprobs": -1}, {"logprobs": 101}], ids=str
)
def test_requests_that_make_no_sense_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(settings))) as caught:
        ask("x", **settings)
    refused(caught.value)


_numbers = st.floats() | st.integers(-(10**40), 10**40).map(float) | st.floats(0.0, 3.0)
_counts = st.integers() | st.integers(0, 5)
_absurd = st.fixed_dictionaries(
    {},
    optional={
        "temperature": _numbers,
        "top_p": _numbers,
        "top_k": _counts,
        "repetition_penalty": _numbers,
        "seed": st.none() | _counts,
        "stop": st.lists(st.text(max_size=3), max_size=18).map(tuple),
        "max_tokens": _counts,
        "ignore_eos": st.booleans(),
    },
)


@settings(deadline=None, max_examples=60)
@given(_absurd)
def test_any_setting_is_refused_or_works(fields: dict[str, Any]) -> None:
    try:
        sampling = Sampling(**fields)
    except RequestError as error:
        refused(error)
        return
    sampling = dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, 3))
    result = make_engine(model_of("llama")).generate([Request(prompt="hello", sampling=sampling)])[0]
    assert 1 <= len(result.token_ids) <= 3
    assert result.finish_reason in ("stop", "length")
    assert not any(word in result.text for word in sampling.stop)


@settings(deadline=None, max_examples=60)
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["add", "rotate", "scale"]))
def test_any_strength_is_refused_or_works(strength: float, kind: str) -> None:
    from tests.engine.rig import edit_of

    request = ask("hello", Recipe(name="any", edits=(edit_of(kind, 1, layer=1),)), tokens=3, strength=strength)
    try:
        result = make_engine(model_of("llama")).generate([request])[0]
    except RequestError as error:
        assert "strength" in str(error)
        refused(error)
        return
    assert len(result.token_ids) == 3
    assert all(math.isfinite(item.logprob) for item in result.logprobs)


# --- prompts and recipes

_ELSE = ModelRef(id="another", config_hash="0" * 64, weights_hash="1" * 64)
WRONG: dict[str, tuple[type[SteersmanError], Request, str]] = {
    "empty text": (RequestError, ask(""), "empty"),
    "no messages": (RequestError, ask(()), "empty"),
    "empty message": (RequestError, ask([{"role": "user", "content": ""}]), "empty"),
    "blank message": (RequestError, ask([{"role": "user", "content": " \n\t "}]), "empty"),
    "no question": (RequestError, ask([{"role": "assistant", "content": "x"}]), "empty"),
    "too long": (RequestError, ask("x" * CONTEXT), str(CONTEXT)),
    "far too long": (RequestError, ask("x" * CONTEXT * 20), str(CONTEXT)),
    "half a character": (RequestError, ask("\ud800"), "surrogate"),
    "half a character in a chat": (RequestError, ask([{"role": "user", "content": "a\udcff"}]), "surrogate"),
    "another model": (RecipeMismatch, ask("x", dataclasses.replace(push(), model=_ELSE)), "another"),
    "missing layer": (RecipeMismatch, ask("x", push(layer=N_LAYERS)), f"layer {N_LAYERS}"),
    "wrong width": (
        RecipeMismatch,
        ask("x", Recipe(name="w", edits=(dataclasses.replace(push().edits[0], vector=vector(0, 2 * D_MODEL)),))),
        f"{2 * D_MODEL} dimensions",
    ),
    "condition of the wrong width": (
        RecipeMismatch,
        ask(
            "x", Recipe(name="r", edits=(), abort=Above(layer=0, target=Direction(vector=vector(0, 5)), threshold=0.0))
        ),
        "5 dimensions",
    ),
    "abort at a missing layer": (
        RecipeMismatch,
        ask("x", Recipe(name="a", edits=(), abort=Above(layer=99, target=Direction(vector=vector(0)), threshold=0.0))),
        "layer 99",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused_before_anything_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, request, says = WRONG[name]
    engine, passes = make_engine(model_of("llama")), Passes(monkeypatch)
    for hand_in in (
        lambda: engine.generate([ask("good"), request, ask("good")]),
        lambda: engine.stream(request),
        lambda: engine.submit(request),
    ):
        with pytest.raises(kind, match=says) as caught:
            hand_in()
        refused(caught.value)
    assert passes.shapes == []
    assert len(engine.generate([ask("next", tokens=3)])[0].token_ids) == 3
    assert max(rows for rows, columns in passes.shapes if columns > 1) == 1


def test_a_wrong_request_does_not_disturb_those_that_run() -> None:
    engine = make_engine(model_of("llama"))
    expected = engine.generate([ask("hello", push(), tokens=200)])[0]
    stream = engine.stream(ask("hello", push(), tokens=200))
    next(stream)
    for kind, request, _ in WRONG.values():
        with pytest.raises(kind):
            engine.generate([request])
        next(stream)
    last = [chunk.result for chunk in stream][-1]
    assert last == expected


def with_template(template: str | None) -> LanguageModel:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return LanguageModel(model_of("llama").hf, tokenizer, "tiny-templated")


def test_a_chat_for_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(RequestError, match="no chat template") as caught:
        make_engine(with_template(None)).generate([ask([{"role": "user", "content": "hi"}])])
    refused(caught.value)


def test_a_chat_that_the_template_refuses_is_refused_in_one_line() -> None:
    model = with_template("{{ raise_exception('System role\nnot supported') }}")
    with pytest.raises(RequestError, match="not supported") as caught:
        make_engine(model).generate([ask([{"role": "user", "content": "hi"}])])
    refused(caught.value)


def test_what_is_merely_odd_works() -> None:
    engine = make_engine(model_of("llama"))
    for prompt in (" ", "\n", "\0", "é" * 50, "🎉", "</s>", "<s>", "\u2028"):
        assert len(engine.generate([ask(prompt, tokens=2)])[0].token_ids) == 2
    assert engine.generate([ask("x" * (CONTEXT - 1), tokens=10**30)])[0].finish_reason == "length"
