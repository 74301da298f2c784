"""Whether an answer is still sensible: likely words, no loops, about the prompt, whole words. Knows nothing of behaviours.

Each part is a number in [0, 1], near 1 for any sensible text, steered or not; coherence is their product, so that one thing gone
wrong is enough.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steersman.engine.engine import Engine
from steersman.engine.guard import repetition
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.facts import fact
from steersman.judges.facts import Answered
from steersman.models.language_model import chat
from steersman.models.sentence_encoder import TextEncoder

ANY_PROMPT = "Tell me something."
"""What an answer that is about nothing asked may be an answer to."""

_PIECE = re.compile(r"\w+|[^\w\s]")
_RUN = re.compile(r"(\S.{0,11}?)\1{3,}", re.DOTALL)
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_CONSONANTS = re.compile(r"[bcdfghjklmnpqrstvwxz]{7,}")
_SWITCH = re.compile(r"[a-z][A-Z]|[a-z]\d|\d[a-z]")
_DRAWN_OUT = re.compile(r"(.)\1+")
_ALPHABETS = {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "CJK"}
_WITH_CJK = {"HIRAGANA", "KATAKANA", "HANGUL"}
_LONGEST_WORD = 24
_LOW = 0.5


@fact
class Coherence:
    """The parts of it, each in [0, 1]."""

    fluency: float
    """How likely the unsteered model finds the words."""
    variety: float
    """1: nothing is repeated; 0: nothing else."""
    relevance: float
    """Whether it is about what the prompt is about."""
    form: float
    """Whole words, in letters."""

    @property
    def score(self) -> float:
        """The product."""
        return self.fluency * self.variety * self.relevance * self.form

    @property
    def complaint(self) -> str:
        """What is wrong with the text, in words; empty where nothing is."""
        said = {
            "unlikely words": self.fluency,
            "repeats itself": self.variety,
            "not about the prompt": self.relevance,
            "broken words": self.form,
        }
        return ", ".join(words for words, value in said.items() if value < _LOW)


NOTHING = Coherence(fluency=0.0, variety=0.0, relevance=0.0, form=0.0)
"""Of an empty answer."""


def fluency(mean_logprob: float) -> float:
    """What the mean log-probability a token by the unsteered model says: 1 down to -2, one half at -3.6, 0 from -5 on.

    On the bundled model plain answers lie at -0.7 to -1.4, well-steered ones at -1.5 to -3, those with broken words below -5.
    Likelier is not better beyond that: loops are the likeliest text of all.
    """
    return _logistic((mean_logprob + 3.6) / 0.4)


def variety(text: str) -> float:
    """How little of the text repeats: 1 while less than 15 % of its 3-grams of words have been there before, 0 from 60 % on.

    Runs of the same few characters (`hahahaha`, `.....`) count by the share of the text that they cover.
    """
    pieces = _PIECE.findall(text.lower())
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    repeated = repetition([ids[piece] for piece in pieces])
    runs = sum(len(match[0]) - len(match[1]) for match in _RUN.finditer(text))
    return _falling(max(repeated, runs / max(len(text), 1)), 0.15, 0.6)


def relevance(gain: float, cosine: float) -> float:
    """Whether an answer is about its prompt, from two measures of it: near 0 where their sum is below 0, near 1 from 0.25 on.

    Args:
        gain: by how many nats a token the answer is likelier to its prompt than to `ANY_PROMPT`; answers to other prompts lie
            below 0, own ones at 0.1 to 1.3. Alone it tells 0.99 of pairs right, in any style and language.
        cosine: of the embeddings of prompt and answer, counted by half: it settles what is close. Alone it fails where the
            answer is in another language or style.
    """
    return _logistic((gain + cosine / 2 - 0.1) / 0.05)


def form(text: str) -> float:
    """1 for words in letters, whatever the language; falls with broken words, and is 0 from a quarter of them on.

    Broken are words longer than 24 letters, with no vowel in sight, or that mix alphabets, cases or digits again and again;
    characters that stand for nothing count too. Text without a letter or digit scores 0.
    """
    words = _WORD.findall(text)
    if not any(character.isalnum() for character in text):
        return 0.0
    broken = sum(map(_is_broken, words)) / len(words)
    solid = [character for character in text if not character.isspace()]
    odd = sum(
        unicodedata.category(character) in {"Cc", "Cn", "Co", "Cs"} or character == "\ufffd" for character in solid
    )
    signs = sum(not character.isalnum() and unicodedata.category(character)[0] != "M" for character in solid)
    strange = max(odd / len(solid) * 4, _rising(signs / len(solid), 0.35, 0.7))
    return _falling(broken, 0.0, 0.25) * (1 - min(1.0, strange))


def aside(item: Answered) -> AnswerItem:
    """The answer to a prompt that asks for nothing in particular."""
    return AnswerItem(prompt=chat(ANY_PROMPT), answer=item.answer)


def weigh(
    answer: str, plain: Float[Tensor, " tokens"], elsewhere: Float[Tensor, " tokens"], cosine: float
) -> Coherence:
    """Coherence of an answer that is not empty.

    Args:
        answer: the text.
        plain: log-probability of its tokens by the unsteered model, given the prompt.
        elsewhere: the same, given `ANY_PROMPT` instead.
        cosine: of the embeddings of prompt and answer.
    """
    return Coherence(
        fluency=fluency(float(plain.mean())),
        variety=variety(answer),
        relevance=relevance(float((plain - elsewhere).mean()), cosine),
        form=form(answer),
    )


def cosines(encoder: TextEncoder, items: Sequence[Answered]) -> list[float]:
    """Likeness of each answer to its prompt, by meaning. Neither may be empty."""
    prompts, answers = encoder.encode([i.prompt for i in items]), encoder.encode([i.answer for i in items])
    return [float(value) for value in (prompts * answers).sum(1)]


def coherences(engine: Engine, encoder: TextEncoder, items: Sequence[Answered]) -> list[Coherence]:
    """Coherence of each answer; empty ones have none.

    Raises:
        RequestError: a prompt is empty, an answer is too long for the model, or the model has no chat template.
    """
    full = [index for index, item in enumerate(items) if item.answer.strip()]
    some = [items[index] for index in full]
    asks = [(AnswerItem(prompt=chat(item.prompt), answer=item.answer), aside(item)) for item in some]
    logprobs = iter(answer_logprobs(engine, [ask for each in asks for ask in each]))
    found = [NOTHING] * len(items)
    for index, item, cosine in zip(full, some, cosines(encoder, some), strict=True):
        found[index] = weigh(item.answer, next(logprobs), next(logprobs), cosine)
    return found


def _is_broken(word: str) -> bool:
    if not word.isascii():
        names = [unicodedata.name(character, " ").split(" ")[0] for character in word if character.isalpha()]
        return len({"CJK" if name in _WITH_CJK else name for name in names} & _ALPHABETS) > 1
    plain = _DRAWN_OUT.sub(r"\1", word.lower())  # "Arrrrrrr" is a word.
    return len(plain) > _LONGEST_WORD or bool(_CONSONANTS.search(plain)) or len(_SWITCH.findall(word)) > 1


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, value))))


def _rising(value: float, start: float, stop: float) -> float:
    return max(0.0, min(1.0, (value - start) / (stop - start)))


def _falling(value: float, start: float, stop: float) -> float:
    return 1 - _rising(value, start, stop)
