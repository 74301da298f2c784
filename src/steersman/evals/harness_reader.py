"""What an evaluation harness asks of a model, answered by an engine under a recipe: likelihoods, rolling ones, texts.

Plain tuples in, plain numbers out. Knows nothing of any harness's own classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.engine.request import Request, Sampling
from steersman.errors import ModelError, RequestError, did_you_mean
from steersman.models.language_model import LanguageModel
from steersman.steering.recipe import Recipe

_GENERATED_TOKENS = 256
_MAX_STOPS = 16
_SURE = math.log(0.5)
"""A token likelier than this is the likeliest one, whatever the others are."""
_SETTINGS = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
_log = logging.getLogger(__name__)


class Reader:
    """What the harness asks of a model, answered by an engine: plain tuples in, plain numbers out."""

    def __init__(self, engine: Engine, recipe: Recipe | None = None, strength: float = 1.0) -> None:
        """Answer by `engine`, steered by `recipe` times `strength`; None and 0 are the plain model.

        Raises:
            RecipeMismatch: the recipe is for another model.
        """
        if recipe is not None:
            recipe.check_fits(engine.model)
        self.engine, self.strength = engine, strength
        self.recipe = recipe if strength else None

    @property
    def model(self) -> LanguageModel:
        """The engine's."""
        return self.engine.model

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log-probability (natural), and whether greedy decoding would write just that.

        A context that is too long loses its beginning; an empty one is the tokenizer's beginning or end of text.

        Raises:
            RequestError: a continuation that is too long or holds no token, or an output that is no number.
        """
        items = [self._item(context, continuation) for context, continuation in pairs]
        found = answer_logprobs(self.engine, items)
        sure = [bool((logprobs > _SURE).all()) for logprobs in found]
        greedy = self._greedy(items, [len(logprobs) for logprobs in found], sure)
        return [(float(logprobs.sum()), is_greedy) for logprobs, is_greedy in zip(found, greedy, strict=True)]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each whole text. One that is longer than the context is read in windows: every token once, with as
        much before it as fits at the end. Each window begins with the token that stands for the beginning of a text.

        All of a text counts as written by the model: edits of the prompt do not touch it.
        """
        items, counted, owners = [], [], []
        for owner, text in enumerate(texts):
            ids = self._ids(text)
            for start, stop, new in _windows(len(ids), self._room()):
                items.append(self._asked(self._beginning, tuple(ids[start:stop])))
                counted.append(new)
                owners.append(owner)
        sums = [0.0] * len(texts)
        for owner, new, logprobs in zip(owners, counted, answer_logprobs(self.engine, items), strict=True):
            sums[owner] += float(logprobs[-new:].sum())
        return sums

    def generate(self, asks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What the model writes behind each context, up to the first of the stop texts in `until`; they run in one batch.

        Raises:
            RequestError: unknown or wrong settings, or more tokens asked for than the context holds.
        """
        requests, stops = [], []
        for context, settings in asks:
            sampling, until = _sampling(settings)
            room = self.model.context_tokens - sampling.max_tokens
            if room < 1:
                raise RequestError(
                    f"max_gen_toks={sampling.max_tokens} leaves no room for a prompt in {self.model.context_tokens} tokens"
                )
            prompt = self._cut(context, room) or self._beginning
            requests.append(Request(prompt=prompt, recipe=self.recipe, strength=self.strength, sampling=sampling))
            stops.append(until)
        results = self.engine.generate(requests)
        return [_before(result.text, until) for result, until in zip(results, stops, strict=True)]

    @property
    def _beginning(self) -> str:
        tokenizer = self.model.tokenizer
        text: str | None = tokenizer.bos_token or tokenizer.eos_token
        if not text:
            raise ModelError(f"{self.model.name} has no token for the beginning or end of a text; give contexts")
        return text

    def _room(self) -> int:
        return self.model.context_tokens - len(self.model.encode(self._beginning))

    def _ids(self, text: str) -> list[int]:
        return list(self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _asked(self, prompt: str, answer: str | tuple[int, ...]) -> AnswerItem:
        return AnswerItem(prompt=prompt, answer=answer, recipe=self.recipe, strength=self.strength)

    def _item(self, context: str, continuation: str) -> AnswerItem:
        # As the harness does: spaces at the end of a context belong to the first word behind it.
        bare = context.rstrip(" ")
        continuation = context[len(bare) :] + continuation
        room = self.model.context_tokens - len(self._ids(continuation)) - 1
        return self._asked(self._cut(bare, room) or self._beginning, continuation)

    def _cut(self, text: str, room: int) -> str:
        """The end of a text that is at most `room` tokens, without a beginning of text that the tokenizer writes itself."""
        bos = self.model.tokenizer.bos_token
        if bos and text.startswith(bos) and self.model.encode(text)[:2] == [self.model.tokenizer.bos_token_id] * 2:
            text = text.removeprefix(bos)
        if not text or len(self.model.encode(text)) <= room:
            return text
        _log.warning("a context was cut to its last %d tokens", room)
        ids, keep = self._ids(text), room
        while keep > 0:
            end: str = self.model.tokenizer.decode(ids[-keep:], clean_up_tokenization_spaces=False)
            # A text that is cut may be split into other tokens, more of them.
            if len(self.model.encode(end)) <= room:
                return end
            keep -= 1
        return ""

    def _greedy(self, items: Sequence[AnswerItem], lengths: Sequence[int], sure: Sequence[bool]) -> list[bool]:
        """Whether greedy decoding writes the answers: where it is not plain from their likelihood, one token is written for
        each prompt, and only behind answers that begin with it the rest."""
        greedy = list(sure)
        left = [place for place, known in enumerate(sure) if not known]
        for whole in (False, True):
            wanted = {place: lengths[place] if whole else 1 for place in left}
            longest: dict[str, int] = {}
            for place, n in wanted.items():
                prompt = str(items[place].prompt)
                longest[prompt] = max(longest.get(prompt, 0), n)
            written = dict(zip(longest, self._written(longest), strict=True))
            left = []
            for place, n in wanted.items():
                if written[str(items[place].prompt)][:n] == self._answer_ids(items[place], lengths[place])[:n]:
                    greedy[place] = n == lengths[place]
                    left += [] if greedy[place] else [place]
        return greedy

    def _answer_ids(self, item: AnswerItem, length: int) -> tuple[int, ...]:
        """The tokens of an answer that has `length` of them, as they follow its prompt."""
        if not isinstance(item.answer, str):
            return item.answer
        whole = self.model.tokenizer(f"{item.prompt}{item.answer}", verbose=False)["input_ids"]
        ahead = self.model.encode(item.prompt)
        joined = tuple(whole[len(ahead) :])
        return joined if list(whole[: len(ahead)]) == ahead and len(joined) == length else tuple(self._ids(item.answer))

    def _written(self, longest: Mapping[str, int]) -> list[tuple[int, ...]]:
        requests = [
            Request(
                prompt=prompt,
                recipe=self.recipe,
                strength=self.strength,
                sampling=Sampling(max_tokens=tokens, ignore_eos=True),
            )
            for prompt, tokens in longest.items()
        ]
        return [result.token_ids for result in self.engine.generate(requests)]


def _windows(n_tokens: int, room: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, new tokens) of the windows in which `n_tokens` are read, at most `room` at once."""
    read = 0
    while read < n_tokens:
        # Behind the first window one place goes to the token before, so that nothing is read without any context.
        stop = min(read + room - bool(read), n_tokens)
        yield max(0, stop - room), stop, stop - read
        read = stop


def _sampling(settings: Mapping[str, Any]) -> tuple[Sampling, list[str]]:
    for name in settings:
        if name not in _SETTINGS:
            raise RequestError(f"unknown generation setting {name!r}{did_you_mean(name, _SETTINGS)}")
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else [text for text in until if text]
    temperature = float(settings.get("temperature") or 0.0)
    if settings.get("do_sample") is False:
        temperature = 0.0
    elif settings.get("do_sample") and "temperature" not in settings:
        temperature = 1.0
    sampling = Sampling(
        temperature=temperature,
        top_p=float(settings.get("top_p") or 1.0),
        top_k=int(settings.get("top_k") or 0),
        repetition_penalty=float(settings.get("repetition_penalty") or 1.0),
        seed=settings.get("seed"),
        stop=tuple(until[:_MAX_STOPS]),
        max_tokens=int(settings.get("max_gen_toks") or _GENERATED_TOKENS),
    )
    return sampling, until


def _before(text: str, until: Sequence[str]) -> str:
    """The text up to the first of the stops; beyond those that the engine watches for."""
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]
