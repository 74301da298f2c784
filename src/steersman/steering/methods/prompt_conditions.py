"""Conditions on whole requests: which tokens of a prompt are read, what is read there, and whether a condition holds.

Knows prompts, models and conditions; not how a condition was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import DataError
from steersman.models.blocks import check_layer
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile
from steersman.steering.condition import AllOf, Condition, Since, TokenIs, layers_read
from steersman.steering.edits import Add
from steersman.steering.methods.prompt_sets import Ids, PromptSets, residuals, steered, tokens_of, turn_end
from steersman.steering.methods.thresholds import Detection, detection
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector
from steersman.steering.where import Where

Reader = Callable[[Float[Tensor, "tokens d_model"]], Float[Tensor, "tokens readings"]]
"""What is read at each token of a prompt, first token left out; in float32."""


def over_the_prompt(item: Condition, tokens: Ids) -> Condition:
    """A condition on single tokens as one on requests: true from the first token where it holds, of `tokens` where given."""
    return Since(item=AllOf(items=(TokenIs(token_ids=tokens), item)) if tokens else item)


def read_tokens(model: LanguageModel, read: Literal["turn_end", "any"]) -> Ids:
    """The tokens that a condition looks at; none for any token.

    Raises:
        DataError: turns of a model that knows none.
    """
    if read == "turn_end" and not model.is_chat:
        raise DataError(f"{model.name} has no chat template, so that no token ends a turn; read 'any' token")
    return turn_end(model) if read == "turn_end" else ()


@torch.no_grad()
def extremes(
    model: LanguageModel, prompts: Sequence[str], readers: Mapping[int, Reader], tokens: Ids
) -> dict[int, Float[Tensor, "two prompts readings"]]:
    """For each layer the largest reading of each prompt, and the largest of its negative: what a threshold is compared with.

    Over the tokens that a condition looks at: a user's turn is not the only one, a system prompt ends in the same way.
    """
    sequences = tokens_of(model, prompts)
    found: dict[int, list[Tensor]] = {layer: [] for layer in readers}
    for ids, hidden in zip(sequences, residuals(model, sequences, sorted(readers)), strict=True):
        at = [place for place, token in enumerate(ids[1:]) if not tokens or token in tokens]
        for layer, reader in readers.items():
            reading = reader(hidden[layer][at].float()).cpu()
            found[layer].append(torch.stack([reading.amax(0), (-reading).amax(0)]))
    return {layer: torch.stack(rows, 1) for layer, rows in found.items()}


def evaluate(
    model: LanguageModel, condition: Condition, prompts: PromptSets, *, profile: ModelProfile, seed: int = 0
) -> Detection:
    """Precision, recall and F1 of any condition on prompts, by the code that the engine runs.

    Raises:
        DataError: prompts of one kind only, or one that is too long.
        ModelError: the condition reads layers that the model does not have.
    """
    return detection(holds(model, condition, prompts.both, profile=profile), prompts.truth, seed=seed)


def holds(model: LanguageModel, condition: Condition, prompts: Sequence[str], *, profile: ModelProfile) -> list[bool]:
    """Whether a condition holds at the last token of each prompt, where the first word of the answer is decided."""
    layer = max(layers_read(condition), default=0)
    check_layer(layer, model.n_layers)
    # An edit that waits for the condition at that one token: where it changes something, the condition holds.
    ones = Vector(torch.ones(model.d_model))
    probe = Add(layer=layer, vector=ones, unit="raw", when=condition, where=Where(positions=(-1,)), strength=1e6)
    sequences, changed = tokens_of(model, prompts), list[Tensor]()
    found = [False] * len(prompts)

    def watch(before: Tensor, after: Tensor | None) -> None:
        changed.append((before != after).flatten(1).any(1) if after is not None else torch.zeros(len(before)).bool())

    def see(rows: Sequence[int], _: object) -> None:
        for row, truth in zip(rows, changed.pop().tolist(), strict=True):
            found[row] = truth

    steered(model, profile.mean_norms, Recipe(name="probe", edits=(probe,)), sequences, see, {layer: watch})
    return found
