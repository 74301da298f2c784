"""Two sets of prompts that differ in kind: from files, split for fitting and reporting, and what the model holds where they end.

Knows prompts, tokens and the residual stream; nothing of what is made of it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.facts import fact
from steersman.files import parse_json, read_text
from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel, chat
from steersman.models.residuals import read_residuals
from steersman.models.spans import in_common
from steersman.steering.pairs import canonical
from steersman.steering.plan import BatchPlan, TokenBatch
from steersman.steering.recipe import Recipe

Ids = tuple[int, ...]
"""Tokens of a prompt, ready to be answered."""

_KEYS = ("prompt", "instruction", "question", "text")
_BATCH_TOKENS = 2048
_CHUNK_PROMPTS = 64


@fact
class PromptSets:
    """Prompts of the kind that is looked for, and of other kinds."""

    trigger: tuple[str, ...]
    other: tuple[str, ...]

    @property
    def both(self) -> tuple[str, ...]:
        """All of them, the triggers first."""
        return self.trigger + self.other

    @property
    def truth(self) -> list[bool]:
        """Of `both`: whether each is a trigger."""
        return [True] * len(self.trigger) + [False] * len(self.other)


@fact
class Parts:
    """Prompts for three purposes, none of them in two."""

    train: PromptSets
    """What directions are computed from."""
    validation: PromptSets
    """What layers and thresholds are chosen on."""
    test: PromptSets
    """What is reported on; used nowhere before."""
    duplicates_dropped: int
    sha256: str
    """Of all the prompts, in order."""


def load_prompts(path: Path) -> list[str]:
    """Prompts of a file: a text with one a line, JSONL, or a JSON list.

    In JSON each prompt is a string, or an object with one of `prompt`, `instruction`, `question` or `text`; other keys are
    left alone, since published sets carry categories and ids.

    Raises:
        DataError: unreadable, not UTF-8, bad JSON, an object without a prompt, or no prompt at all.
    """
    text, hint = read_text(path, "prompts"), "name it .txt to read one prompt a line"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if path.suffix in {".json", ".jsonl"}:
        if path.suffix == ".json":
            items = parse_json(text, str(path), hint)
            if not isinstance(items, list):
                raise DataError(
                    f'{path} holds no list of prompts; write ["...", "..."], or one prompt a line in a .txt file'
                )
        else:
            items = [parse_json(line, f"{path}, prompt {number}", hint) for number, line in enumerate(lines, 1)]
        lines = [_prompt(path, number, item) for number, item in enumerate(items, 1)]
    if not lines:
        raise DataError(f"{path} holds no prompts; write one a line")
    return lines


def split(
    trigger: Sequence[str],
    other: Sequence[str],
    *,
    seed: int,
    shares: tuple[float, float] = (0.5, 0.25),
    least: int = 2,
) -> Parts:
    """Shuffle both sets and cut each into parts to train on, to choose on and to report on.

    Args:
        trigger: prompts of the kind that is looked for.
        other: prompts of other kinds, as like them in form as can be.
        seed: of the shuffling.
        shares: of the prompts to train on and to choose on; the rest is reported on.
        least: prompts that every part of each set must have.

    Raises:
        DataError: an empty prompt, one that is in both sets, too few of a kind, or shares that leave nothing.
    """
    if min(shares) <= 0 or sum(shares) >= 1:
        raise DataError(f"the shares {shares[0]:g} and {shares[1]:g} must be above 0 and leave something to report on")
    kept = [list(dict.fromkeys(prompt.strip() for prompt in given)) for given in (trigger, other)]
    if any(not prompt for given in kept for prompt in given):
        raise DataError("a prompt is empty; remove it")
    if common := set(kept[0]) & set(kept[1]):
        raise DataError(f"{len(common)} prompts stand in both sets, such as {min(common)[:60]!r}; keep each in one")
    draw, cut = random.Random(seed), []
    for what, prompts in zip(("that should trigger", "that should not"), kept, strict=True):
        first, second = (round(sum(shares[:n]) * len(prompts)) for n in (1, 2))
        shuffled = draw.sample(prompts, len(prompts))
        cut.append([tuple(shuffled[:first]), tuple(shuffled[first:second]), tuple(shuffled[second:])])
        if min(map(len, cut[-1])) < least:
            raise DataError(
                f"there are {len(prompts)} different prompts {what}; give at least {4 * least}, forty are better"
            )
    train, validation, test = (PromptSets(trigger=one, other=two) for one, two in zip(*cut, strict=True))
    return Parts(
        train=train,
        validation=validation,
        test=test,
        duplicates_dropped=len(trigger) + len(other) - len(kept[0]) - len(kept[1]),
        sha256=hashlib.sha256(canonical(kept).encode()).hexdigest(),
    )


def tokens_of(model: LanguageModel, prompts: Sequence[str]) -> list[Ids]:
    """Tokens of each prompt: a user message where the model writes chats, else the text as it stands.

    Raises:
        DataError: one that is longer than the model reads.
    """
    found = [tuple(model.encode(chat(prompt) if model.is_chat else prompt)) for prompt in prompts]
    for prompt, ids in zip(prompts, found, strict=True):
        if len(ids) > model.context_tokens:
            raise DataError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens; {model.name} reads {model.context_tokens}: shorten it"
            )
        if len(ids) < 2:
            raise DataError(f"the prompt {prompt[:40]!r} is one token, which is never read; write more")
    return found


def behind_the_prompt(model: LanguageModel) -> Ids:
    """The tokens that the model's chat template writes between a user's message and the answer; none without a template."""
    if not model.is_chat:
        return ()
    one, other = (model.encode(chat(word)) for word in ("0", "1"))
    n = in_common(one[::-1], other[::-1])
    return tuple(one[len(one) - n :])


def turn_end(model: LanguageModel) -> Ids:
    """The tokens at which a user's turn is known to be over: the special ones of those behind it, else the last of those."""
    behind = behind_the_prompt(model)
    first = model.encode(chat("0"))[0] if behind else None
    special = [token for token in dict.fromkeys(behind) if token in model.tokenizer.all_special_ids and token != first]
    return tuple(special[:1] or behind[-1:])


def at_positions(
    model: LanguageModel, sequences: Sequence[Ids], layers: Sequence[int], positions: Sequence[int]
) -> dict[tuple[int, int], Float[Tensor, "prompts d_model"]]:
    """Residual stream by (layer, position), float32 on the CPU; positions count back from the end, -1 is the last token.

    Raises:
        DataError: a position that the shortest prompt does not have (its first token is never read).
    """
    shortest = min(map(len, sequences))
    for position in positions:
        if not -shortest < position < 0:
            raise DataError(f"position {position} does not exist; the prompts have positions -1 to {1 - shortest}")
    found: dict[tuple[int, int], list[Tensor]] = {(layer, position): [] for layer in layers for position in positions}
    for hidden in residuals(model, sequences, layers):
        for layer, position in found:
            found[layer, position].append(hidden[layer][position].float().cpu())
    return {key: torch.stack(rows) for key, rows in found.items()}


def residuals(
    model: LanguageModel, sequences: Sequence[Ids], layers: Sequence[int]
) -> Iterator[Mapping[int, Float[Tensor, "tokens d_model"]]]:
    """Residual stream of each prompt, first token left out; a chunk of prompts at a time is held."""
    for start in range(0, len(sequences), _CHUNK_PROMPTS):
        yield from read_residuals(model, sequences[start : start + _CHUNK_PROMPTS], layers)


@torch.no_grad()
def steered(
    model: LanguageModel,
    mean_norms: Sequence[float],
    recipe: Recipe | None,
    sequences: Sequence[Ids],
    see: Callable[[Sequence[int], Any], None],
    watch: Mapping[int, Callable[[Tensor, Tensor | None], None]] | None = None,
) -> None:
    """Run prompts with a recipe on, by the plan that the engine runs, in batches of similar length.

    Args:
        model: what reads them.
        mean_norms: mean residual norm of each layer.
        recipe: what steers all of them; None for nothing.
        sequences: the prompts.
        see: called for each batch with the indices of its prompts and what the model returns.
        watch: by layer, called with the stream before and after the edits there (None: unchanged) just before `see`.
    """
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    while order:
        size = max(1, _BATCH_TOKENS // len(sequences[order[-1]]))
        rows, order = order[-size:], order[:-size]
        lengths = torch.tensor([[len(sequences[row])] for row in rows], device=model.device)
        width = int(lengths.max())
        ids = torch.tensor(
            [[*sequences[row], *[0] * (width - len(sequences[row]))] for row in rows], device=model.device
        )
        positions = torch.arange(width, device=model.device).expand(len(rows), -1)
        valid = positions < lengths
        batch = TokenBatch(ids, positions, lengths, valid, torch.ones(len(rows), device=model.device))
        hooks = BatchPlan([recipe] * len(rows), mean_norms, model.device).bind(batch, [{} for _ in rows]).hooks
        hooks |= {layer: _watched(hooks.get(layer), watcher) for layer, watcher in (watch or {}).items()}
        with model.lock, editing(model.blocks, hooks):
            output = model.hf(input_ids=ids, attention_mask=valid.long(), use_cache=False)
        see(rows, output)


def _watched(
    hook: Callable[[Tensor], Tensor | None] | None, watcher: Callable[[Tensor, Tensor | None], None]
) -> Callable[[Tensor], Tensor | None]:
    def edit(hidden: Tensor) -> Tensor | None:
        after = hook(hidden) if hook else None
        watcher(hidden, after)
        return after

    return edit


def _prompt(path: Path, number: int, item: Any) -> str:
    found = next((item[key] for key in _KEYS if key in item), None) if isinstance(item, dict) else item
    if not isinstance(found, str) or not found.strip():
        raise DataError(
            f'{path}, prompt {number}: no text under any of {", ".join(_KEYS)}; write a string or {{"prompt": ...}}'
        )
    return found
