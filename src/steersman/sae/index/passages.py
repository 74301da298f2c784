"""Windows of tokens as text: where each token stands in it, and the tags that a chat template writes.

Knows nothing of features, labels or scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from steersman.models.spans import in_common
from steersman.sae.index.facts import NO_TOKEN, Contexts

_BROKEN = "\ufffd"
_MAX_TOKENS_A_CHARACTER = 4
_CJK = 0x2E80
_HANGUL = range(0xAC00, 0xD7A4)
_QUESTION, _ANSWER, _SYSTEM = "\ue000", "\ue001", "\ue002"


@dataclass(frozen=True, slots=True)
class ChatTags:
    """What a chat template writes around the turns; empty where there is no such thing."""

    question: str = ""
    """Opens a user's turn."""
    answer: str = ""
    """Opens an assistant's turn."""
    system: str = ""
    """Opens the system prompt."""
    end: str = ""
    """Ends a turn."""

    @property
    def openings(self) -> tuple[str, ...]:
        """The tags that open a turn."""
        return tuple(filter(None, (self.question, self.answer, self.system)))


@dataclass(frozen=True, slots=True)
class Passage:
    """One window as text."""

    text: str
    bounds: tuple[int, ...]
    """Token `i` is `text[bounds[i]:bounds[i + 1]]`; empty where a character only ends with a later token."""
    activations: tuple[float, ...] = ()
    """Of each token; empty where none are known."""

    @property
    def peak(self) -> int:
        """The token where the feature is strongest."""
        return max(range(len(self.activations)), key=self.activations.__getitem__, default=0)

    @property
    def height(self) -> float:
        """The largest activation."""
        return max(self.activations, default=0.0)

    def token(self, index: int) -> str:
        """Text of one token."""
        return self.text[self.bounds[index] : self.bounds[index + 1]]


@dataclass(frozen=True)
class Reader:
    """Turns token ids into passages, remembering the text of each token."""

    tokenizer: Any
    """A transformers tokenizer."""
    tags: ChatTags = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", chat_tags(self.tokenizer))
        object.__setattr__(self, "_known", {})

    def passages(self, contexts: Contexts) -> tuple[Passage, ...]:
        """Contexts with their activations, in their order; those without a token are left out."""
        rows = zip(contexts.tokens.tolist(), contexts.activations.tolist(), strict=True)
        return tuple(self.passage(ids, values) for ids, values in rows if ids and ids[0] != NO_TOKEN)

    def texts(self, windows: Int[Tensor, "windows width"]) -> list[str]:
        """Text of each window."""
        return [self.passage(ids).text for ids in windows.tolist()]

    def passage(self, ids: Sequence[int], activations: Sequence[float] = ()) -> Passage:
        """One window; `NO_TOKEN` behind its end is cut off."""
        kept = [token for token in ids if token != NO_TOKEN]
        parts = self._parts(kept)
        bounds = [0]
        for part in parts:
            bounds.append(bounds[-1] + len(part))
        return Passage("".join(parts), tuple(bounds), tuple(activations[: len(kept)]))

    def _parts(self, ids: Sequence[int]) -> list[str]:
        """Text of each token, in place; a character made of several tokens belongs to its last one."""
        parts = [self._one(token) for token in ids]
        start = 0
        while start < len(parts):
            if _BROKEN not in parts[start]:
                start += 1
                continue
            for end in range(start + 2, min(start + _MAX_TOKENS_A_CHARACTER, len(ids)) + 1):
                whole = self._decode(ids[start:end])
                if _BROKEN not in whole:
                    parts[start:end] = [""] * (end - start - 1) + [whole]
                    start = end
                    break
            else:
                start += 1
        return parts

    def _one(self, token: int) -> str:
        known: dict[int, str] = self.__dict__["_known"]
        if token not in known:
            piece = self.tokenizer.convert_ids_to_tokens(token)
            # SentencePiece marks the space before a word, and loses it when one token is decoded.
            marked = isinstance(piece, str) and piece.startswith("▁")
            known[token] = piece.replace("▁", " ") if marked else self._decode([token])
        return known[token]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def chat_tags(tokenizer: Any) -> ChatTags:
    """Find the tags of a chat template by writing a chat with it; no tags where there is no template or it refuses."""
    if not getattr(tokenizer, "chat_template", None):
        return ChatTags()
    from jinja2 import TemplateError

    turns = [("user", _QUESTION), ("assistant", _ANSWER), ("user", _QUESTION)]
    try:
        text = _render(tokenizer, turns)
    except TemplateError:
        return ChatTags()
    if [char for char in text if char in (_QUESTION, _ANSWER)] != [_QUESTION, _ANSWER, _QUESTION]:
        return ChatTags()
    _, to_answer, to_question = text.replace(_ANSWER, _QUESTION).split(_QUESTION)[:3]
    shared = to_answer[: in_common(to_answer, to_question)]
    # "<|im_end|>\n<|im_start|>": the last run without a space opens the next turn, what stands before ends this one.
    end, _, opening = shared.rpartition("\n") if "\n" in shared else ("", "", shared)
    try:
        system = _render(tokenizer, [("system", _SYSTEM), ("user", _QUESTION)]).partition(_SYSTEM)[0]
    except TemplateError:
        system = ""
    return ChatTags(
        question=opening + to_question[len(shared) :],
        answer=opening + to_answer[len(shared) :],
        system=system[system.rfind(opening) :] if opening and opening in system else "",
        end=end.strip(),
    )


def _render(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def folded(text: str) -> str:
    """Lower case, one character for each, so that places in it are places in `text`."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def joins(char: str) -> bool:
    """Whether a character holds on to its neighbours in a word. Scripts that write no spaces do not."""
    return char.isalnum() and (ord(char) < _CJK or ord(char) in _HANGUL)


def word_at(text: str, start: int, end: int) -> tuple[int, int]:
    """Grow a stretch to the whole words that it touches at its ends.

    Returns:
        Start and end; unchanged where the stretch begins or ends outside a word.
    """
    if start < end:
        while start > 0 and joins(text[start]) and joins(text[start - 1]):
            start -= 1
        while end < len(text) and joins(text[end - 1]) and joins(text[end]):
            end += 1
    return start, end


def find_literal(text: str, lower: str, literal: str) -> Iterable[int]:
    """Where a literal stands in a text.

    Letters and digits at its ends stand at the end of a word there too, unless the literal goes on with an ellipsis: `un…`
    begins longer words, `…ing` ends them. A literal without capitals matches any case.

    Args:
        text: to be looked through.
        lower: `folded(text)`.
        literal: what to find.

    Returns:
        The places, first to last.
    """
    before, after = literal.startswith("…") and len(literal) > 1, literal.endswith("…") and len(literal) > 1
    core = literal[before : len(literal) - after]
    where = lower if core == folded(core) else text
    at = where.find(core) if core else -1
    while at >= 0:
        end = at + len(core)
        is_inside = (
            at > 0 and joins(where[at - 1]) and joins(core[0]),
            end < len(where) and joins(where[end]) and joins(core[-1]),
        )
        if is_inside == (before, after):
            yield at
        at = where.find(core, at + 1)
