"""The default judge: offline, by the model that is steered, but unsteered. Behaviour by likelihood, coherence by its parts.

It reads all answers under all prompts in one go, and remembers its verdicts: tuning and proof ask for many of them again.
"""

from __future__ import annotations

from collections.abc import Sequence

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.judges.coherence import NOTHING, aside, cosines, form, variety, weigh
from steersman.judges.facts import Answered, Verdict
from steersman.judges.likelihood import NEUTRAL, TOLD, asked, log_ratio, score, sentence
from steersman.models.language_model import chat
from steersman.models.sentence_encoder import TextEncoder

_REMEMBERED = 4096


class LocalJudge:
    """A judge of the protocol in `facts`. Any number of threads may ask it."""

    name = "likelihood"

    def __init__(self, engine: Engine, encoder: TextEncoder) -> None:
        """Make a judge.

        Args:
            engine: its model reads the answers, plain and told to behave; nothing steers it.
            encoder: says whether an answer is about its prompt.
        """
        self.engine, self.encoder = engine, encoder
        self._known: dict[tuple[str, Answered], Verdict] = {}

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        """One verdict an answer, in order. An empty answer scores 0 in both.

        Raises:
            DataError: the behaviour is empty.
            RequestError: a prompt is empty, an answer is too long for the model, or the model has no chat template.
        """
        known = self._known
        fresh = [item for item in dict.fromkeys(items) if (behaviour, item) not in known]
        if len(known) + len(fresh) > _REMEMBERED:
            known = self._known = {}
            fresh = list(dict.fromkeys(items))
        for item, verdict in zip(fresh, self._read(behaviour, fresh), strict=True):
            known[behaviour, item] = verdict
        return [known[behaviour, item] for item in items]

    def _read(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        full = [index for index, item in enumerate(items) if item.answer.strip()]
        some = [items[index] for index in full]
        asks = [(*asked(behaviour, item), aside(item)) for item in some]
        found = iter(answer_logprobs(self.engine, [ask for each in asks for ask in each]))
        verdicts = [_verdict(0.0, NOTHING.score, "empty")] * len(items)
        for index, each, cosine in zip(full, asks, cosines(self.encoder, some), strict=True):
            *read, elsewhere = [next(found) for _ in each]
            whole = weigh(items[index].answer, read[-1], elsewhere, cosine)
            verdicts[index] = _verdict(score(log_ratio(read)), whole.score, whole.complaint)
        return verdicts


class QuickJudge:
    """The default judge in short, for many answers that the model wrote unsteered: two readings an answer instead of five.

    Behaviour: likelihood when told to behave so, against a neutral system prompt in the same words. Coherence: whole words and no
    loops; unsteered text need not be asked for more. Good for comparing answers to one prompt; `LocalJudge` is better calibrated.
    """

    name = "likelihood, in short"

    def __init__(self, engine: Engine) -> None:
        """Make a judge of an engine's model, unsteered."""
        self.engine = engine

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        """One verdict an answer, in order. An empty answer scores 0 in both.

        Raises:
            DataError: the behaviour is empty.
            RequestError: a prompt is empty, an answer is too long for the model, or the model has no chat template.
        """
        told = TOLD[0].format(behaviour=sentence(behaviour))
        full = [item for item in dict.fromkeys(items) if item.answer.strip()]
        asks = [
            AnswerItem(prompt=chat(item.prompt, system), answer=item.answer)
            for item in full
            for system in (told, NEUTRAL)
        ]
        found = iter(answer_logprobs(self.engine, asks))
        verdicts = {}
        for item in full:
            ratio = float(next(found).mean()) - float(next(found).mean())
            verdicts[item] = _verdict(score(ratio), form(item.answer) * variety(item.answer), "")
        return [verdicts.get(item, _verdict(0.0, 0.0, "empty")) for item in items]


def _verdict(behaviour: float, coherence: float, critique: str) -> Verdict:
    return Verdict(behaviour=behaviour, coherence=coherence, critique=critique)
