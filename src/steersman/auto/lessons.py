"""What weights are trained on: texts, and what should be predicted at each token of their answers. Knows no features.

Where the model can be told to behave so, it is its own teacher: at each token of an answer, the distribution that it has when
told, moved further along what being told changes,

    p(token) ~ p_told(token) * (p_told(token) / p_plain(token)) ** AMPLIFY

among the tokens that it finds plausible when told. Learning a prompt's effect this way is context distillation
(arXiv:2112.00861, arXiv:2209.15189); the amplification is classifier-free guidance (arXiv:2306.17806) with the plausibility
bound of contrastive decoding (arXiv:2210.15097). A whole distribution a token says far more than the one token that was written,
so few texts are enough. Where the examples are somebody else's, their tokens are what is to be predicted, and those of the plain
answers what is not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.auto.contrast_set import OWN_ANSWERS, phrasings
from steersman.auto.facts import Behaviour, ContrastItem, ContrastSet
from steersman.errors import DataError
from steersman.models.language_model import LanguageModel, chat
from steersman.models.spans import answer_span
from steersman.models.upper import Prepared, Reading, UpperModel

AMPLIFY = 1.0
"""How much further than the prompt the teacher goes."""
TEXTS = 8
"""Texts of a lesson: one step of training."""
_PLAUSIBLE = 4.0
"""Nats below the likeliest token that a token may lie when told, and still be taught."""
_TOKENS = 128
"""Likeliest tokens that are compared; the rest holds next to nothing."""
_UNLEARN = 0.3
"""Weight of not predicting the plain answers, where the examples are not the model's own."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch of texts with what is to be predicted."""

    batch: Prepared
    tokens: Int[Tensor, "n k"]
    """Tokens that may follow, for each wanted one."""
    shares: Float[Tensor, "n k"]
    """How much each of them should; below 0: should not."""
    least: float
    """Entropy of the shares, summed: what the loss cannot fall below."""

    def loss(self, upper: UpperModel, added: Float[Tensor, " d_model"]) -> Tensor:
        """Summed divergence (nats) of what is predicted, with `added` in the residual stream, from what should be."""
        logits = upper.logits(self.batch, added)
        picked = logits.gather(1, self.tokens) - logits.logsumexp(1, keepdim=True)
        return -(self.shares * picked).sum() - self.least

    def __len__(self) -> int:
        """Tokens that are predicted."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Lessons:
    """What to train on, and what to validate with."""

    upper: UpperModel
    train: tuple[Lesson, ...]
    validation: tuple[Lesson, ...]


def mean_loss(upper: UpperModel, lessons: Sequence[Lesson], added: Float[Tensor, " d_model"]) -> Tensor:
    """Mean over the tokens of some lessons; differentiable."""
    return sum((lesson.loss(upper, added) for lesson in lessons), torch.zeros(())) / sum(map(len, lessons))


def make_lessons(model: LanguageModel, layer: int, behaviour: Behaviour, contrast: ContrastSet, seed: int) -> Lessons:
    """Prepare the texts of a contrast set: all positive answers, and every second plain one.

    Raises:
        DataError: no text is left to train on.
    """
    upper = UpperModel(model, layer)
    made = {}
    for side in ("train", "validation"):
        items: list[ContrastItem] = list(getattr(contrast, side))
        texts = [(item, "positive") for item in items] + [(item, "negative") for item in items[::2]]
        random.Random(seed).shuffle(texts)
        teach = _by_telling if contrast.source == OWN_ANSWERS else _by_example
        made[side] = tuple(teach(upper, behaviour, texts[at : at + TEXTS]) for at in range(0, len(texts), TEXTS))
    if not made["train"]:
        raise DataError("there are no examples to train on")
    return Lessons(upper, made["train"], made["validation"] or made["train"][:1])


def _by_example(upper: UpperModel, _: Behaviour, texts: Sequence[tuple[ContrastItem, str]]) -> Lesson:
    batch = upper.together([_reading(upper.model, item.prompt, None, getattr(item, side)) for item, side in texts])
    weights = torch.tensor([1.0 if side == "positive" else -_UNLEARN for _, side in texts], device=batch.ids.device)
    shares = weights.repeat_interleave(batch.wanted.sum(1))[:, None]
    return Lesson(batch, batch.targets[:, None], shares, 0.0)


@torch.no_grad()
def _by_telling(upper: UpperModel, behaviour: Behaviour, texts: Sequence[tuple[ContrastItem, str]]) -> Lesson:
    readings = []
    for item, side in texts:
        told_prompt, system = phrasings(behaviour, item.prompt)[0]
        answer = getattr(item, side)
        plain, told = (
            _reading(upper.model, item.prompt, None, answer),
            _reading(upper.model, told_prompt, system, answer),
        )
        if plain.ids[plain.start :] == told.ids[told.start :]:
            readings.append((plain, told))
    if not readings:
        raise DataError(
            "the chat template splits the same answer differently behind each prompt; give examples instead"
        )
    batch = upper.together([plain for plain, _ in readings])
    nothing = torch.zeros(upper.model.d_model, device=batch.hidden.device)
    before = upper.logits(batch, nothing).log_softmax(1)
    after = upper.logits(upper.together([told for _, told in readings]), nothing).log_softmax(1)
    likely, tokens = after.topk(min(_TOKENS, after.shape[1]), dim=1)
    guided = likely + AMPLIFY * (likely - before.gather(1, tokens))
    guided[likely < likely[:, :1] - _PLAUSIBLE] = -torch.inf
    shares = guided.softmax(1)
    return Lesson(batch, tokens, shares, float(-torch.special.xlogy(shares, shares).sum()))


def _reading(model: LanguageModel, prompt: str, system: str | None, answer: str) -> Reading:
    span = answer_span(model, [*chat(prompt, system), {"role": "assistant", "content": answer}])
    return Reading(tuple(span.ids[: span.stop]), span.start)
