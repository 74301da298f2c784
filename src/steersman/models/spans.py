"""Where the answer of a chat stands among its tokens. Knows nothing of what is read there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from steersman.models.language_model import LanguageModel, Message


class AnswerSpan(NamedTuple):
    """The tokens of a chat that ends with the assistant's message, and which of them are that message."""

    ids: list[int]
    """Of the whole chat, what the template writes behind the answer included."""
    start: int
    stop: int


def answer_span(model: LanguageModel, chat: Sequence[Message]) -> AnswerSpan:
    """Find the last message of a chat among the tokens that the model's template makes of it.

    A token that reaches from the template into the answer counts as the answer's.

    Raises:
        RequestError: a model without a chat template, or a chat that the template refuses.
    """
    text = model.render(chat, answer=False)
    # What the template writes around an answer, whatever it is: what two different answers have in common.
    probes = [model.render([*chat[:-1], Message(role="assistant", content=word)], answer=False) for word in "01"]
    before, behind = (in_common(*pair) for pair in (probes, [probe[::-1] for probe in probes]))
    whole, upto, opening = (
        list(model.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])
        for part in (text, text[: len(text) - behind], text[:before])
    )
    return AnswerSpan(whole, in_common(whole, opening), in_common(whole, upto))


def in_common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))
