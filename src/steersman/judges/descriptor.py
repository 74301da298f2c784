"""How far a text is WORD, for any word, from 0 to 10, boundary at 5: by the plain model's likelihoods and by what the text means.

    likelihood = log p(text | must be WORD) - mean over `NEUTRAL` of log p(text | must be NEUTRAL), in nats a token
    meaning    = cos(text, "This sounds WORD.") - the same for `NEUTRAL` and `OTHERS`, mean of the two means
    score      = 10 * logistic((likelihood + meaning - CENTRE) / WIDTH), which grows with both

Neutral words stand in the same sentence: beside a prompt without a system prompt, every text that is not the model's own becomes
likelier, whatever word is asked for. Both parts know English best. Knows nothing of coherence, and not whether a text says true.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.errors import DataError, RequestError
from steersman.facts import fact
from steersman.judges.facts import Answered
from steersman.models.language_model import chat
from steersman.models.sentence_encoder import TextEncoder

TOLD = "Whatever you are asked, your answer must be {word}."
"""System prompt that asks for a word."""
PROMPT = "Write a short text."
"""What a text answers that comes without a prompt."""
SOUNDS = "This sounds {word}."
"""What is embedded for a word."""
NEUTRAL = ("ordinary", "neutral", "clear")
OTHERS = ("happy", "serious", "friendly", "dramatic", "simple", "childish")

CENTRE, WIDTH = 0.106, 0.054
"""Sum of both parts that scores 5, and by how much it must grow to score 7.3: a logistic regression of texts that were written to
be one of 18 words against plain texts and texts of the other words, each kind weighing as much (`python bench/descriptors.py
--fit`). The bundled model and sentence encoder; with others the order of texts holds, the boundary may not."""

MAX_WORDS, MAX_CHARACTERS = 5, 60
_PIECE_WORDS = 150
"""Sentence encoders cut what is longer than some 200 words: long texts are embedded in pieces."""


@fact
class DescriptorScore:
    """How far one text is one word."""

    word: str
    score: float
    """0: not at all, or the contrary; 5: as likely as not; 10: as clearly as can be."""
    likelihood: float
    """In nats a token."""
    meaning: float
    """Difference of cosines."""
    note: str | None = None
    """Why the score deserves less trust; None: nothing speaks against it."""


class DescriptorJudge:
    """Scores texts for words. Any number of threads may ask it."""

    def __init__(self, engine: Engine, encoder: TextEncoder) -> None:
        """Make a judge.

        Args:
            engine: its model reads the texts, unsteered; it needs a chat template.
            encoder: says what texts mean.
        """
        self.engine, self.encoder = engine, encoder

    def score(self, texts: Sequence[str | Answered], words: Sequence[str]) -> list[list[DescriptorScore]]:
        """One row a text, one score a word, in order. Each word costs one reading of each text, all in one go.

        Args:
            texts: alone, or with the prompts that they answer.
            words: each one word or a few, such as `cheerful` or `like a pirate`.

        Raises:
            DataError: no words; a word that is empty, holds no letter or is a sentence; an empty text.
            RequestError: a text is too long for the model, or the model has no chat template.
        """
        said = [descriptor(word) for word in words]
        if not said:
            raise DataError("there is no word to score for; give one, such as 'cheerful'")
        items = [each if isinstance(each, Answered) else Answered(PROMPT, each) for each in texts]
        self._check(items, said)
        likelihood, meaning = self._likelihood(items, said), self._meaning(items, said)
        return [
            [
                DescriptorScore(
                    word=word,
                    score=on_scale(float(nats + cosine)),
                    likelihood=float(nats),
                    meaning=float(cosine),
                    note=_note(item.answer, word),
                )
                for word, nats, cosine in zip(said, row, cosines, strict=True)
            ]
            for item, row, cosines in zip(items, likelihood, meaning, strict=True)
        ]

    def _check(self, items: Sequence[Answered], words: Sequence[str]) -> None:
        model = self.engine.model
        if not model.is_chat:
            raise RequestError(f"{model.name} has no chat template; scores need a chat model, such as 'default'")
        longest = TOLD.format(word=max((*words, *NEUTRAL), key=len))
        for number, item in enumerate(items, 1):
            if not item.answer.strip():
                raise DataError(f"text {number} is empty; leave it out")
            if any("\ud800" <= char <= "\udfff" for char in item.prompt + item.answer):
                raise DataError(
                    f"text {number} or its prompt holds half a character (a lone surrogate); write it whole"
                )
            room = model.context_tokens - len(model.encode(chat(item.prompt, longest)))
            n = len(model.tokenizer(item.answer, add_special_tokens=False, verbose=False)["input_ids"])
            if n >= room:
                raise RequestError(
                    f"text {number} has {n} tokens; {model.name} reads {max(room, 0)} of them beside the prompt: cut it up"
                )

    def _likelihood(self, items: Sequence[Answered], words: Sequence[str]) -> Float[Tensor, "texts words"]:
        every = list(dict.fromkeys([*words, *NEUTRAL]))
        asks = [
            AnswerItem(prompt=chat(item.prompt, TOLD.format(word=word)), answer=item.answer)
            for word in every
            for item in items
        ]
        means = torch.tensor([float(logprobs.mean()) for logprobs in answer_logprobs(self.engine, asks)])
        told = dict(zip(every, means.view(len(every), len(items)), strict=True))
        neutral = torch.stack([told[word] for word in NEUTRAL]).mean(0)
        return torch.stack([told[word] - neutral for word in words], 1)

    def _meaning(self, items: Sequence[Answered], words: Sequence[str]) -> Float[Tensor, "texts words"]:
        pieces = [_pieces(item.answer) for item in items]
        encoded = self.encoder.encode([piece for each in pieces for piece in each])
        found = torch.split(encoded, [len(each) for each in pieces])
        texts = (
            F.normalize(torch.stack([each.mean(0) for each in found]), dim=1)
            if items
            else torch.zeros(0, self.encoder.width)
        )
        neutral, others, wanted = (
            self.encoder.encode([SOUNDS.format(word=word) for word in kind]) for kind in (NEUTRAL, OTHERS, words)
        )
        return texts @ (wanted - (neutral.mean(0) + others.mean(0)) / 2).T


def on_scale(sum_of_parts: float) -> float:
    """Likelihood plus meaning on the scale from 0 to 10; grows all the way."""
    return 10 / (1 + math.exp(-max(-50.0, min(50.0, (sum_of_parts - CENTRE) / WIDTH))))


def descriptor(word: str) -> str:
    """A word that can be scored for, its spaces tidied up.

    Raises:
        DataError: it is empty, holds no letter, or is a sentence.
    """
    said = " ".join(word.split())
    if not said:
        raise DataError("the word is empty; give one, such as 'cheerful'")
    if len(said.split()) > MAX_WORDS or len(said) > MAX_CHARACTERS or said[-1] in ".!?":
        raise DataError(
            f"{said[:MAX_CHARACTERS]!r} is no word but a sentence; give one word or up to {MAX_WORDS}, such as 'like a pirate'"
        )
    if any("\ud800" <= char <= "\udfff" for char in said):
        raise DataError("the word holds half a character (a lone surrogate); write it whole")
    if not any(char.isalpha() for char in said):
        raise DataError(f"the word {said!r} holds no letter; give one, such as 'cheerful'")
    return said


def _pieces(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[start : start + _PIECE_WORDS]) for start in range(0, len(words), _PIECE_WORDS)]


def _note(text: str, word: str) -> str | None:
    """A reason for less trust that can be seen from outside."""
    for what, said in (("text", text), ("word", word)):
        letters = [char for char in said if char.isalpha()]
        strange = sum(not unicodedata.name(char, "").startswith("LATIN") for char in letters)
        if strange * 2 > len(letters):
            return f"the {what} is hardly in English, which the scores were calibrated on"
    if len(text.split()) < 3:
        return "the text has fewer than three words"
    return None
