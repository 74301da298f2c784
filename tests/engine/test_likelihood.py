"""Likelihood of given answers: that of a plain forward pass, steered as generation steers, and independent of the batch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from tests.engine.rig import Passes, ask, conditions, edit_of, hooks_of, make_engine, model_of, prompts, push, recipes
from tests.tiny import CONTEXT, tiny_model
from torch import Tensor

from steersman.engine import reading, reading_plan
from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, ChoiceQuestion, answer_logprobs, choice_accuracy, choose
from steersman.errors import DataError, RecipeMismatch, RequestError
from steersman.models.language_model import LanguageModel, Prompt, chat
from steersman.models.residuals import ModelProfile
from steersman.steering.recipe import Recipe
from steersman.steering.where import Where


def by_hand(model: LanguageModel, prompt: Prompt, answer: str | tuple[int, ...]) -> Tensor:
    """One sequence through the model alone; one token a byte, so that nothing can merge."""
    ahead = model.encode(prompt)
    ids = [*ahead, *(answer if isinstance(answer, tuple) else model.tokenizer(answer)["input_ids"])]
    with torch.no_grad():
        logprobs = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
    return torch.stack([logprobs[place - 1, ids[place]] for place in range(len(ahead), len(ids))])


def some_items(recipe: Recipe | None = None) -> list[AnswerItem]:
    """Chats with a system prompt and without, raw texts, one prompt with many answers, answers of many lengths."""
    texts = prompts(24)
    asked: list[Prompt] = [chat(text, "speak up") for text in texts[:6]]
    asked += [*texts[6:12], *[chat(text) for text in texts[12:18]], *[chat("which one?")] * 6]
    return [
        AnswerItem(prompt=prompt, answer=answer, recipe=recipe)
        for prompt, answer in zip(asked, reversed(texts), strict=True)
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3"])
def test_likelihoods_are_those_of_a_plain_forward_pass(kind: str) -> None:
    model, items = model_of(kind), some_items()
    for item, found in zip(items, answer_logprobs(make_engine(model), items), strict=True):
        assert torch.allclose(found, by_hand(model, item.prompt, item.answer), atol=2e-3)


def test_likelihoods_do_not_depend_on_the_pieces_they_are_read_in(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, items = make_engine(model_of("llama")), some_items()
    whole = answer_logprobs(engine, items)
    monkeypatch.setattr(reading, "_MAX_LOGITS", 1)
    monkeypatch.setattr(reading_plan, "_MAX_ROWS", 5)
    passes = Passes(monkeypatch)
    for one, other in zip(whole, answer_logprobs(engine, items), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert max(rows for rows, _ in passes.shapes) == 5


def test_an_answer_is_as_likely_alone_as_among_others_bit_for_bit_in_bfloat16() -> None:
    engine = make_engine(tiny_model(dtype=torch.bfloat16))
    items = [*some_items(), *some_items(push()), *some_items(push(1, layer=2))]
    random.Random(0).shuffle(items)
    together = answer_logprobs(engine, items)
    for item, found in list(zip(items, together, strict=True))[::5]:
        assert torch.equal(answer_logprobs(engine, [item])[0], found)


def generated_alike(found: Sequence[Recipe], strength: float = 1.0) -> None:
    """Greedy answers of the engine, read again under the recipe that they were written with."""
    engine, texts = make_engine(model_of("llama")), prompts(len(found))
    requests = [ask(text, recipe, 12, strength=strength) for text, recipe in zip(texts, found, strict=True)]
    results = engine.generate(requests)
    items = [
        AnswerItem(prompt=text, answer=result.token_ids, recipe=recipe, strength=strength)
        for text, recipe, result in zip(texts, found, results, strict=True)
    ]
    for result, logprobs in zip(results, answer_logprobs(engine, items), strict=True):
        written = torch.tensor([item.logprob for item in result.logprobs])
        assert torch.allclose(logprobs, written, atol=2e-3)


def test_likelihoods_are_those_that_generation_reports() -> None:
    # Without latents and conditions, whose jumps turn rounding into another answer.
    smooth = [recipe for recipe in recipes(thin=11) if recipe.edits[0].when is None and "latent" not in recipe.name]
    assert len({recipe.edits[0].kind for recipe in smooth}) > 3
    generated_alike(smooth)


def test_the_factor_on_the_strength_counts() -> None:
    generated_alike([push(seed) for seed in range(4)], strength=-0.6)


def test_what_a_condition_met_in_a_shared_prompt_is_remembered() -> None:
    since = next(condition for condition in reversed(conditions()) if condition is not None)
    recipe = Recipe(name="since", edits=(edit_of("add", 3, layer=2, when=since, where=Where(scope="generated")),))
    engine, prompt = make_engine(model_of("llama")), chat("a question that is long enough to be met by a condition")
    items = [AnswerItem(prompt=prompt, answer=text, recipe=recipe) for text in prompts(6)]
    together = answer_logprobs(engine, items)
    assert not torch.allclose(
        together[3], answer_logprobs(engine, [AnswerItem(prompt=prompt, answer=items[3].answer)])[0], atol=1e-2
    )
    for item, found in zip(items, together, strict=True):
        assert torch.allclose(answer_logprobs(engine, [item])[0], found, atol=1e-4)


def test_a_prompt_with_many_answers_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, passes = make_engine(model_of("llama")), Passes(monkeypatch)
    question = chat("which of these is it, if you please, of all the things that you know?")
    answer_logprobs(engine, [AnswerItem(prompt=question, answer=word) for word in ("tea", "salt", "rice", "bread")])
    length = len(engine.model.encode(question))
    assert sum(rows * columns for rows, columns in passes.shapes) < length + 4 * 16


def test_strength_zero_is_the_plain_model_and_no_hook_stays() -> None:
    model = model_of("llama")
    engine, hooks = make_engine(model), hooks_of(model)
    item = AnswerItem(prompt="some text", answer=" and more")
    plain = answer_logprobs(engine, [item])[0]
    steered = [AnswerItem(prompt="some text", answer=" and more", recipe=push(), strength=s) for s in (0.0, 1.0)]
    off, on = answer_logprobs(engine, steered)
    assert torch.equal(off, plain)
    assert not torch.allclose(on, plain)
    assert hooks_of(model) == hooks


def test_an_answer_that_fills_the_context_is_read_and_a_longer_one_refused() -> None:
    engine = make_engine(model_of("gpt2"))
    full = AnswerItem(prompt="ab", answer="x" * (CONTEXT - 2))
    assert len(answer_logprobs(engine, [full, AnswerItem(prompt="a", answer="b")])[0]) == CONTEXT - 2
    with pytest.raises(RequestError, match=f"{CONTEXT + 1} tokens.*shorten"):
        answer_logprobs(engine, [AnswerItem(prompt="ab", answer="x" * (CONTEXT - 1))])


def test_nothing_to_weigh_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        AnswerItem(prompt="x", answer="")
    assert answer_logprobs(make_engine(model_of("llama")), []) == []


def test_a_recipe_of_another_model_is_not_read_with() -> None:
    other = Recipe(name="other", edits=push().edits, model=tiny_model("gpt2").ref)
    with pytest.raises(RecipeMismatch):
        answer_logprobs(make_engine(model_of("llama")), [AnswerItem(prompt="a", answer="b", recipe=other)])


def test_steering_beyond_all_numbers_is_refused() -> None:
    item = AnswerItem(prompt="abc", answer="def", recipe=push(strength=1e38), strength=1e3)
    with pytest.raises(RequestError, match="lower it"):
        answer_logprobs(make_engine(model_of("llama")), [item])


def questions() -> list[ChoiceQuestion]:
    texts = prompts(12)
    return [
        ChoiceQuestion(question=text, choices=("yes", "no, never", text[::-1] + "!"), answer_index=1) for text in texts
    ]


@pytest.mark.parametrize("recipe", [None, push()])
def test_the_choice_is_the_likeliest_answer(recipe: Recipe | None) -> None:
    engine, asked = make_engine(model_of("llama")), questions()
    chosen = choose(engine, asked, recipe)
    for question, index in zip(asked, chosen, strict=True):
        prompt = f"Question: {question.question}\nAnswer:"
        items = [AnswerItem(prompt=prompt, answer=f" {text}", recipe=recipe) for text in question.choices]
        sums = [float(logprobs.sum()) for logprobs in answer_logprobs(engine, items)]
        assert index == sums.index(max(sums))
    right = [
        ChoiceQuestion(question=q.question, choices=q.choices, answer_index=i)
        for q, i in zip(asked, chosen, strict=True)
    ]
    assert choice_accuracy(engine, right, recipe) == 1.0
    assert math.isclose(choice_accuracy(engine, asked, recipe), sum(i == 1 for i in chosen) / len(chosen))


def test_a_model_without_chats_chooses_too() -> None:
    model = tiny_model("gpt2")
    model.tokenizer.chat_template = None
    asked = ChoiceQuestion(question="which?", choices=("this", "that one"), answer_index=0)
    sums = [by_hand(model, "Question: which?\nAnswer:", f" {text}").sum() for text in asked.choices]
    assert choose(make_engine(model), [asked]) == [int(torch.stack(sums).argmax())]


def test_questions_that_nobody_can_answer_are_refused() -> None:
    with pytest.raises(DataError, match="two choices"):
        ChoiceQuestion(question="q", choices=("one",), answer_index=0)
    with pytest.raises(DataError, match="choices 0 to 1, not 2"):
        ChoiceQuestion(question="q", choices=("one", "two"), answer_index=2)
    with pytest.raises(DataError, match="no questions"):
        choice_accuracy(make_engine(model_of("llama")), [])


@pytest.mark.model
def test_the_bundled_model_reads_an_answer_as_it_stands_in_the_chat(bundled: LanguageModel) -> None:
    engine = Engine(bundled, profile=ModelProfile(bundled.ref.weights_hash, (100.0,) * bundled.n_layers))
    texts = ("Ahoy, matey!", "Water boils at 100 °C.", "\n\nIndented", " with a space", "こんにちは")
    items = [AnswerItem(prompt=chat("What is tea?"), answer=text) for text in texts]
    for text, found in zip(texts, answer_logprobs(engine, items), strict=True):
        ids = bundled.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(found) == len(ids)
        alone = answer_logprobs(engine, [AnswerItem(prompt=chat("What is tea?"), answer=tuple(ids))])[0]
        assert torch.equal(found, alone)
