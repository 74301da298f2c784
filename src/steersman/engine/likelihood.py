"""How likely a model finds answers that are given, plain or steered, and which of several answers it finds likeliest.

Answers are read, not written: many tokens of many rows in one pass. What rows begin with alike (a system prompt, a question
with several answers) is read once. Knows nothing of judges, or of what is read together; a recipe's `abort` is left aside, as
nothing is being written that could be ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steersman.engine.engine import Engine
from steersman.engine.reading import Reader
from steersman.engine.reading_plan import Row
from steersman.engine.runner import Runner
from steersman.errors import DataError, RequestError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, Prompt
from steersman.steering.recipe import Recipe


@fact
class AnswerItem:
    """An answer whose likelihood is asked for."""

    prompt: Prompt
    """Text that it continues, or chat that it answers; a system prompt is the chat's first message."""
    answer: str | tuple[int, ...]
    """Text, or tokens as they were written."""
    recipe: Recipe | None = None
    """What steers the model while it reads; None for the plain model."""
    strength: float = 1.0
    """Factor on the recipe's strengths."""

    def __post_init__(self) -> None:
        if not self.answer:
            raise RequestError("the answer is empty; there is nothing to weigh")


@fact
class ChoiceQuestion:
    """A question with answers to choose from."""

    question: str
    choices: tuple[str, ...]
    answer_index: int
    """Which choice is right, counted from 0."""

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(choice.strip() for choice in self.choices):
            raise DataError(f"{self.question[:60]!r} needs at least two choices, none of them empty")
        if not 0 <= self.answer_index < len(self.choices):
            raise DataError(f"{self.question[:60]!r} has choices 0 to {len(self.choices) - 1}, not {self.answer_index}")


def answer_logprobs(engine: Engine, items: Sequence[AnswerItem]) -> list[Float[Tensor, " tokens"]]:
    """Log-probability (natural, float32, on the CPU) of every token of every answer, given its prompt.

    A text is split into tokens as it would be behind its prompt, where that leaves the prompt's own tokens as they are. What
    else is asked changes no result, as far as the engine's batches keep rows apart (in bfloat16 on a CPU: bit for bit).

    Args:
        engine: whose model reads; requests that run there meanwhile are not disturbed.
        items: prompts and answers; any number, memory stays bounded.

    Raises:
        RequestError: prompt and answer do not fit into the context, or steering makes the model's output no number.
        RecipeMismatch, SaeError: as for a request.
    """
    rows = [_row(engine, index, item) for index, item in enumerate(items)]
    found: dict[int, Tensor] = {}
    for row, logprobs in Reader(Runner(engine.model), engine.profile.mean_norms).read(rows):
        if not bool(logprobs.isfinite().all()):
            raise RequestError(f"the model's output is not a number at strength {row.strength:g}; lower it")
        found[row.index] = logprobs
    return [found[index] for index in range(len(items))]


def choose(
    engine: Engine, questions: Sequence[ChoiceQuestion], recipe: Recipe | None = None, *, strength: float = 1.0
) -> list[int]:
    """For each question, the index of the choice that the model finds likeliest as its answer.

    Choices are compared by the log-probability of their whole text behind `Question: ... Answer:`; the others are not shown. On
    the bundled model and easy questions with short answers that chooses better than the mean a token, and than a chat.

    Raises:
        RequestError, RecipeMismatch, SaeError: as `answer_logprobs`.
    """
    items = [
        AnswerItem(
            prompt=f"Question: {asked.question}\nAnswer:", answer=f" {choice.strip()}", recipe=recipe, strength=strength
        )
        for asked in questions
        for choice in asked.choices
    ]
    sums = iter([float(logprobs.sum()) for logprobs in answer_logprobs(engine, items)])
    found = []
    for asked in questions:
        scores = [next(sums) for _ in asked.choices]
        found.append(scores.index(max(scores)))
    return found


def choice_accuracy(
    engine: Engine, questions: Sequence[ChoiceQuestion], recipe: Recipe | None = None, *, strength: float = 1.0
) -> float:
    """Share of questions of which `choose` finds the right answer.

    Raises:
        DataError: no questions.
        RequestError, RecipeMismatch, SaeError: as `answer_logprobs`.
    """
    if not questions:
        raise DataError("there are no questions; give at least one")
    chosen = choose(engine, questions, recipe, strength=strength)
    right = sum(index == asked.answer_index for index, asked in zip(chosen, questions, strict=True))
    return right / len(questions)


def _row(engine: Engine, index: int, item: AnswerItem) -> Row:
    model, recipe = engine.model, item.recipe
    if recipe is not None:
        recipe.check_fits(model)
    saes = engine.saes_for(recipe)
    if recipe is not None and (item.strength == 0.0 or not any(edit.strength for edit in recipe.edits)):
        recipe = None  # Strength 0 is the plain model, bit for bit.
    prompt = model.encode(item.prompt)
    answer = _answer_ids(model, item, prompt)
    ids = (*prompt, *answer)
    if len(ids) > model.context_tokens:
        raise RequestError(
            f"item {index}: prompt and answer have {len(ids)} tokens; {model.name} reads {model.context_tokens}: shorten them"
        )
    return Row(index, ids, len(prompt), recipe, item.strength, saes)


def _answer_ids(model: LanguageModel, item: AnswerItem, prompt: Sequence[int]) -> Sequence[int]:
    """The answer's tokens: split together with the prompt, or alone where that would change the prompt's last tokens."""
    if not isinstance(item.answer, str):
        return item.answer
    is_text = isinstance(item.prompt, str)
    text = item.prompt if isinstance(item.prompt, str) else model.render(item.prompt)
    whole = model.tokenizer(text + item.answer, add_special_tokens=is_text, verbose=False)["input_ids"]
    if len(whole) > len(prompt) and list(whole[: len(prompt)]) == list(prompt):
        return list(whole[len(prompt) :])
    alone: list[int] = model.tokenizer(item.answer, add_special_tokens=False, verbose=False)["input_ids"]
    if not alone:
        raise RequestError(f"the answer {item.answer[:40]!r} holds no token that {model.name} knows")
    return alone
