"""Answers to many prompts, read together in two steps: as likely as when each is read alone, plain and steered."""

from __future__ import annotations

import pytest
import torch
from tests.engine.rig import Passes, conditions, edit_of, make_engine, model_of, prompts, push
from tests.tiny import CONTEXT, tiny_model

from steersman.engine import reading
from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.errors import RequestError
from steersman.steering.recipe import Recipe
from steersman.steering.where import Ramp, Where

ANSWERS = ("a", "no", "yes", "never", "a longer one, I think")
"""Of one token, which its prompt predicts, and of more; not all a multiple of four."""
FEW = 7


def asked(recipe: Recipe | None = None, *, strength: float = 1.0, count: int = FEW) -> list[AnswerItem]:
    """Prompts of all lengths, each with several answers, in a mixed order."""
    texts = ["to begin with, " + text for text in prompts(count)]
    return [
        AnswerItem(prompt=text, answer=answer, recipe=recipe, strength=strength) for answer in ANSWERS for text in texts
    ]


def since_met() -> Recipe:
    """Steers the answer once a condition has been met, as a rule in the prompt."""
    since = next(condition for condition in reversed(conditions()) if condition is not None)
    where = Where(scope="generated")
    return Recipe(name="since", edits=(edit_of("add", 3, layer=2, when=since, where=where, schedule=Ramp(tokens=3)),))


def counted_from_the_end() -> Recipe:
    """Steers the last tokens of the prompt and the first ones of the answer."""
    where = (Where(positions=(-1, -3)), Where(scope="generated", stop=2))
    return Recipe(name="end", edits=tuple(edit_of("add", 5 + n, layer=1, where=w) for n, w in enumerate(where)))


def mixed() -> list[AnswerItem]:
    """The same questions plain, under several recipes, and under one of them at two strengths."""
    steered = [*asked(since_met()), *asked(counted_from_the_end()), *asked(push(), strength=0.4), *asked(push())]
    return [*asked(), *steered]


def check_alone(engine: Engine, items: list[AnswerItem], every: int, exact: bool = False) -> None:
    """Every so-manieth item is as likely among the others as alone."""
    together = answer_logprobs(engine, items)
    for item, found in list(zip(items, together, strict=True))[::every]:
        (alone,) = answer_logprobs(engine, [item])
        assert torch.equal(alone, found) if exact else torch.allclose(alone, found, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral"])
def test_an_answer_read_behind_a_shared_prompt_is_as_likely_as_alone(kind: str) -> None:
    check_alone(make_engine(model_of(kind)), mixed(), every=3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_an_answer_read_behind_a_shared_prompt_is_as_likely_bit_for_bit_in_bfloat16(kind: str) -> None:
    check_alone(make_engine(tiny_model(kind, dtype=torch.bfloat16)), mixed(), every=4, exact=True)


def test_the_attention_written_out_sees_the_same_tokens() -> None:
    model = tiny_model("gemma2")
    model.hf.set_attn_implementation("eager")
    check_alone(make_engine(model), asked(), every=4)


def test_answers_read_piece_by_piece_are_as_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, items = make_engine(model_of("llama")), [*asked(), *asked(since_met())]
    whole = answer_logprobs(engine, items)
    monkeypatch.setattr(reading, "_MAX_LOGITS", 1)
    passes = Passes(monkeypatch)
    for one, other in zip(whole, answer_logprobs(engine, items), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert all(columns % 4 == 0 for _, columns in passes.shapes)


def test_every_prompt_is_read_once_and_all_of_them_together(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, items = make_engine(model_of("llama")), asked(count=10)
    # All of one length, so that padding does not count.
    items = [AnswerItem(prompt=str(item.prompt).ljust(60, "."), answer=item.answer) for item in items]
    passes = Passes(monkeypatch)
    answer_logprobs(engine, items)
    needed = 10 * (60 + sum(-(-(len(answer) - 1) // 4) * 4 for answer in ANSWERS))
    assert sum(rows * columns for rows, columns in passes.shapes) <= needed + 4 * 10
    assert len(passes.shapes) <= 5


def test_an_answer_of_one_token_needs_its_prompt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama")), Passes(monkeypatch)
    items = [AnswerItem(prompt="one of the letters of the alphabet:", answer=letter) for letter in "abcdefgh"]
    together = answer_logprobs(engine, items)
    assert passes.shapes == [(1, 36)]
    assert 0 < float(torch.cat(together).exp().sum()) < 1


def test_what_is_left_on_the_right_of_a_prompt_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two prompts, of which one begins as the other: what stands behind the shorter one's end is padding, not its own.
    engine = make_engine(model_of("llama"))
    short, long = "a prompt that ends here", "a prompt that ends here, or rather not here but only there"
    items = [AnswerItem(prompt=text, answer=answer) for text in (short, long) for answer in ANSWERS]
    check_alone(engine, items, every=1)


def test_shared_prompts_at_the_end_of_the_context_are_read() -> None:
    engine = make_engine(model_of("gpt2"))
    ends = (CONTEXT - 5, CONTEXT - 9, CONTEXT - 6)
    items = [
        AnswerItem(prompt=("word " * 120)[: end - 1] + last, answer=answer)
        for end, last in zip(ends, "xyz", strict=True)
        for answer in ("yes", "never", "n")
    ]
    check_alone(engine, items, every=1)


def test_a_prompt_that_steering_breaks_breaks_no_other() -> None:
    engine = make_engine(model_of("llama"))
    plain = answer_logprobs(engine, asked())
    with pytest.raises(RequestError, match="lower it"):
        answer_logprobs(engine, [*asked(), *asked(push(strength=1e38), strength=1e3)])
    for one, other in zip(plain, answer_logprobs(engine, asked()), strict=True):
        assert torch.equal(one, other)
