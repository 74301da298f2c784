"""How likely a model finds answers that are given, plain or steered, and which of several answers it finds likeliest.

Answers are read, not written: all their tokens in one pass, in batches of similar length. What a batch's rows begin with alike
(a system prompt, a question with several answers) is read once. Knows nothing of judges; a recipe's `abort` is left aside, as
nothing is being written that could be ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.engine.cache import KVCache
from steersman.engine.engine import Engine
from steersman.engine.runner import Runner
from steersman.errors import DataError, RequestError
from steersman.facts import fact
from steersman.models.language_model import LanguageModel, Prompt
from steersman.models.spans import in_common
from steersman.sae.model import SparseAutoencoder
from steersman.steering.plan import BatchPlan, Latches, TokenBatch
from steersman.steering.recipe import Recipe

# Whole fours of columns, and never a single row of logits: see `PrefillBatch` for what that does to the last bit.
_STEP = 4
_HEAD_TOKENS = 16
_PASS_COST = 32  # What a pass costs beside its tokens, in tokens.
_MAX_ROWS, _MAX_SLAB_TOKENS = 64, 4096
_MAX_LOGITS = 1 << 25
"""Numbers of logits that are held at once: 134 MB."""


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
    runner = Runner(engine.model)
    for batch in _batches(rows):
        for row, logprobs in zip(batch, _read(runner, engine.profile.mean_norms, batch), strict=True):
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


@dataclass(frozen=True, slots=True)
class _Row:
    """An item as tokens, with all it needs."""

    index: int
    ids: tuple[int, ...]
    start: int
    """Where the answer begins."""
    recipe: Recipe | None
    strength: float
    saes: Mapping[str, SparseAutoencoder]

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.start]


def _row(engine: Engine, index: int, item: AnswerItem) -> _Row:
    model, recipe = engine.model, item.recipe
    if recipe is not None:
        recipe.check_fits(model)
    saes = engine._saes.needed_by(recipe)
    if recipe is not None and (item.strength == 0.0 or not any(edit.strength for edit in recipe.edits)):
        recipe = None  # Strength 0 is the plain model, bit for bit.
    prompt = model.encode(item.prompt)
    answer = _answer_ids(model, item, prompt)
    ids = (*prompt, *answer)
    if len(ids) > model.context_tokens:
        raise RequestError(
            f"item {index}: prompt and answer have {len(ids)} tokens; {model.name} reads {model.context_tokens}: shorten them"
        )
    return _Row(index, ids, len(prompt), recipe, item.strength, saes)


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


def _batches(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Rows that are cheaper read together than apart: of one prompt, of one system prompt, of similar length."""
    heads = Counter(row.ids[:_HEAD_TOKENS] for row in rows)
    order = {recipe: place for place, recipe in enumerate(dict.fromkeys(id(row.recipe) for row in rows))}

    def place(row: _Row) -> tuple[object, ...]:
        head = row.ids[:_HEAD_TOKENS]
        return order[id(row.recipe)], row.strength, head if heads[head] > 1 else (), row.start, row.prompt, len(row.ids)

    batch: list[_Row] = []
    shared = width = 0
    for row in sorted(rows, key=place):
        common, wide = min(shared, _alike(batch[0], row)) if batch else row.start - 1, max(width, len(row.ids))
        apart = _cost(len(batch), shared, width) + _cost(1, 0, len(row.ids))
        full = len(batch) >= _MAX_ROWS or (len(batch) + 1) * wide > _MAX_SLAB_TOKENS
        if batch and (full or _cost(len(batch) + 1, common, wide) > apart):
            yield batch
            batch, common, wide = [], row.start - 1, len(row.ids)
        batch, shared, width = [*batch, row], common, wide
    if batch:
        yield batch


def _cost(rows: int, shared: int, width: int) -> int:
    """What it takes to read `rows` rows of `width` tokens that begin alike, in tokens."""
    if rows < 2 or shared < _STEP:
        return rows * width + _PASS_COST
    return shared + rows * (width - shared) + 2 * _PASS_COST


def _alike(one: _Row, other: _Row) -> int:
    """How many tokens, steered alike, both begin with; the one that predicts the answer's first token is not counted."""
    if one.recipe is not other.recipe or (one.recipe and (one.strength, one.start) != (other.strength, other.start)):
        return 0  # Where edits and schedules apply is counted from the prompt's end.
    return min(in_common(one.ids, other.ids), one.start - 1, other.start - 1)


def _read(runner: Runner, mean_norms: Sequence[float], rows: Sequence[_Row]) -> list[Tensor]:
    """Log-probabilities of the answers of one batch, piece by piece of its columns."""
    shared = min((_alike(rows[0], row) for row in rows[1:]), default=0) // _STEP * _STEP
    width = -(-max(len(row.ids) for row in rows) // _STEP) * _STEP
    step = max(_STEP, _MAX_LOGITS // runner.model.n_vocab // len(rows) // _STEP * _STEP)
    cache = runner.new_cache()
    latches: list[Latches] = [{} for _ in rows]
    if shared:
        head, met = runner.new_cache(), Latches()
        _pass(runner, mean_norms, head, rows[:1], slice(0, shared), [met])
        cache.fit(len(rows), width)
        for place, latch in enumerate(latches):
            cache.copy_row(head, 0, place, shared)
            latch.update(met)
    pieces: list[list[Tensor]] = [[] for _ in rows]
    for start in range(shared, width, step):
        columns = slice(start, min(start + step, width))
        for found, logprobs in zip(pieces, _pass(runner, mean_norms, cache, rows, columns, latches), strict=True):
            found.append(logprobs)
    return [torch.cat(found) for found in pieces]


def _pass(
    runner: Runner,
    mean_norms: Sequence[float],
    cache: KVCache,
    rows: Sequence[_Row],
    columns: slice,
    latches: Sequence[Latches],
) -> list[Tensor]:
    """Read some columns of the rows; log-probabilities of the answer tokens that these columns predict."""
    device, start, stop = runner.model.device, columns.start, columns.stop
    # Padding repeats token 0; it lies behind every real token and is never looked at.
    ids = torch.tensor([_padded(row.ids[start:stop], stop - start) for row in rows], device=device)
    positions = torch.arange(start, stop, device=device).clamp(max=runner.model.context_tokens - 1)
    positions = positions.expand(len(rows), -1)
    # A column predicts the token behind it.
    wanted = [range(max(row.start - 1, start), max(min(len(row.ids) - 1, stop), start)) for row in rows]
    wide = max(2, *map(len, wanted))
    keep = torch.tensor([_padded([column - start for column in kept], wide) for kept in wanted], device=device)
    bound = None
    if any(row.recipe for row in rows):
        batch = TokenBatch(
            token_ids=ids,
            positions=positions,
            prompt_lengths=torch.tensor([[row.start] for row in rows], device=device),
            valid=torch.arange(start, stop, device=device)
            < torch.tensor([[len(row.ids)] for row in rows], device=device),
            gains=torch.tensor([row.strength for row in rows], device=device),
        )
        saes = {key: sae for row in rows for key, sae in row.saes.items()}
        bound = BatchPlan([row.recipe for row in rows], mean_norms, device, saes).bind(batch, latches)
    logits = runner.forward(cache, ids, positions, keep, bound)
    if bound is not None:
        bound.commit()
    found = []
    for place, (row, kept) in enumerate(zip(rows, wanted, strict=True)):
        targets = torch.tensor([row.ids[column + 1] for column in kept], dtype=torch.long, device=device)
        # Row by row: the softmax of a whole batch would double its memory.
        logprobs = logits[place, : len(kept)].log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        found.append(logprobs.cpu())
    return found


def _padded(values: Sequence[int], width: int) -> list[int]:
    return [*values, *[0] * (width - len(values))]
