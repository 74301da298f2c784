"""Grade answers: behaviour and coherence by one or several judges, relevance and fluency by the unsteered model.

A judge that fails on an answer leaves a gap there, with its reason, and nowhere else. Grades are kept as they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from pydantic import JsonValue, TypeAdapter, ValidationError

from steersman.engine.engine import Engine
from steersman.engine.likelihood import answer_logprobs
from steersman.errors import DataError, EndpointError, RequestError
from steersman.evals.behaviours import EvalBehaviour
from steersman.evals.facts import Grade, Progress, Written
from steersman.evals.statistics import harmonic_mean
from steersman.evals.store import Ledger, cache_key
from steersman.judges.coherence import NOTHING, Coherence, aside, coherences, cosines, weigh
from steersman.judges.embedding import EmbeddingJudge
from steersman.judges.facts import Answered, Judge, Verdict
from steersman.judges.likelihood import asked, log_ratio, score
from steersman.judges.llm import LlmJudge
from steersman.judges.local import LocalJudge
from steersman.models.sentence_encoder import TextEncoder

_FAILURES = (RequestError, EndpointError, DataError)
_AT_ONCE = 48
_GRADE = TypeAdapter(Grade)


@dataclass(frozen=True, slots=True)
class Panel:
    """Who grades, and for what."""

    engine: Engine
    encoder: TextEncoder
    judges: tuple[Judge, ...]
    """Behaviour and coherence are the mean over them; None where one of them has none."""
    behaviour: EvalBehaviour

    @property
    def identity(self) -> JsonValue:
        """All that decides a grade, beside the answer."""
        who: list[JsonValue] = [_identity(judge) for judge in self.judges]
        model = self.engine.model
        return [who, self.behaviour.sha256, model.ref.weights_hash, str(model.hf.dtype), self.encoder.name]


def axbench(grade: Grade) -> float | None:
    """Harmonic mean of concept, instruction and fluency, each from 0 to 2 (AxBench, arXiv:2501.17148 section 3.1).

    Concept is twice the behaviour, instruction twice the relevance, fluency twice the fluency: numbers on a scale where the
    paper's LLM judge gives 0, 1 or 2. 0 where one of them is 0, None where one is missing.
    """
    return harmonic_mean([None if v is None else 2 * v for v in (grade.behaviour, grade.relevance, grade.fluency)])


def grade_all(
    panel: Panel, answers: Sequence[tuple[str, Written]], kept: Ledger, progress: Progress | None = None
) -> list[Grade]:
    """A grade for each (prompt, answer), in order; the same answer to the same prompt is graded once.

    Args:
        panel: who grades.
        answers: what was written; an answer that is not there is a gap.
        kept: grades from before; those with a gap are not kept, and asked for again the next time.
        progress: told how many are there.

    Raises:
        StorageError: the disk refused to keep a grade.
    """
    who = panel.identity
    items = {Answered(prompt, each.text) for prompt, each in answers if each.text is not None}
    ordered = sorted(items, key=lambda item: (item.prompt, item.answer))
    keys = {item: cache_key([who, item.prompt, item.answer]) for item in ordered}
    found: dict[Answered, Grade] = {}
    for item in ordered:
        before = _read(kept.get(keys[item]))
        if before is not None:
            found[item] = before
    todo = [item for item in ordered if item not in found]
    for start in range(0, len(todo), _AT_ONCE):
        part = todo[start : start + _AT_ONCE]
        grades = _graded(panel, part)
        kept.put({keys[item]: asdict(grade) for item, grade in zip(part, grades, strict=True) if not grade.missing})
        found |= dict(zip(part, grades, strict=True))
        if progress is not None:
            progress("grades", len(found), len(ordered), "")
    return [
        found[Answered(prompt, each.text)] if each.text is not None else _gap(f"no answer: {each.error}")
        for prompt, each in answers
    ]


def verdicts_of(judge: Judge, said: str, items: Sequence[Answered]) -> list[Verdict]:
    """A judge's verdicts. Where it raises, halves are asked for, so that only what it cannot judge is a gap."""
    if not items:
        return []
    try:
        found = judge.judge(said, items)
        if len(found) != len(items):
            raise DataError(f"the judge {judge.name} gave {len(found)} verdicts on {len(items)} answers")
    except _FAILURES as error:
        if len(items) == 1:
            return [Verdict(behaviour=None, coherence=None, missing=str(error))]
        half = len(items) // 2
        return verdicts_of(judge, said, items[:half]) + verdicts_of(judge, said, items[half:])
    return found


def read_locally(
    engine: Engine, encoder: TextEncoder, behaviour: str, items: Sequence[Answered]
) -> list[tuple[Verdict, Coherence]]:
    """The verdicts of `LocalJudge`, with the parts of their coherence: every answer is read once for both.

    Raises:
        RequestError: a prompt is empty, or an answer is too long for the model.
    """
    full = [place for place, item in enumerate(items) if item.answer.strip()]
    some = [items[place] for place in full]
    asks = [(*asked(behaviour, item), aside(item)) for item in some]
    logprobs = iter(answer_logprobs(engine, [ask for each in asks for ask in each]))
    found = [(Verdict(behaviour=0.0, coherence=NOTHING.score, critique="empty"), NOTHING)] * len(items)
    for place, each, cosine in zip(full, asks, cosines(encoder, some), strict=True):
        *read, elsewhere = [next(logprobs) for _ in each]
        parts = weigh(items[place].answer, read[-1], elsewhere, cosine)
        verdict = Verdict(behaviour=score(log_ratio(read)), coherence=parts.score, critique=parts.complaint)
        found[place] = verdict, parts
    return found


def _graded(panel: Panel, items: Sequence[Answered]) -> list[Grade]:
    local = next((judge for judge in panel.judges if type(judge) is LocalJudge), None)
    parts, first = _parts(panel, items, local is not None)
    columns = []
    for judge in panel.judges:
        if judge is local and first is not None:
            columns.append(first)
        else:
            columns.append(verdicts_of(judge, _said(judge, panel.behaviour), items))
    return [_grade([column[n] for column in columns], parts[n]) for n in range(len(items))]


def _parts(panel: Panel, items: Sequence[Answered], local: bool) -> tuple[list[Coherence | str], list[Verdict] | None]:
    """The parts of each answer's coherence or why there are none; with the local judge's verdicts where they are wanted."""
    try:
        if local:
            both = read_locally(panel.engine, panel.encoder, panel.behaviour.description, items)
            return [parts for _, parts in both], [verdict for verdict, _ in both]
        return list(coherences(panel.engine, panel.encoder, items)), None
    except _FAILURES as error:
        if len(items) == 1:
            why = str(error)
            return [why], [Verdict(behaviour=None, coherence=None, missing=why)] if local else None
    half = len(items) // 2
    (one, first), (other, second) = (_parts(panel, side, local) for side in (items[:half], items[half:]))
    return one + other, None if first is None or second is None else first + second


def _grade(verdicts: Sequence[Verdict], parts: Coherence | str) -> Grade:
    behaviour, coherence = (
        _mean([getattr(verdict, name) for verdict in verdicts]) for name in ("behaviour", "coherence")
    )
    reasons = [verdict.missing for verdict in verdicts if verdict.missing]
    if isinstance(parts, str):
        reasons.append(parts)
    return Grade(
        behaviour=behaviour,
        coherence=coherence,
        relevance=None if isinstance(parts, str) else parts.relevance,
        # A loop is the likeliest text of all, so likely words alone are not yet fluent.
        fluency=None if isinstance(parts, str) else parts.fluency * parts.variety * parts.form,
        missing="; ".join(dict.fromkeys(reasons)) or None,
        critique=" ".join(verdict.critique for verdict in verdicts if verdict.critique),
    )


def _gap(why: str) -> Grade:
    return Grade(behaviour=None, coherence=None, relevance=None, fluency=None, missing=why)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there and len(there) == len(values) else None


def _said(judge: Judge, behaviour: EvalBehaviour) -> str:
    """What a judge is told: a likelihood is one under an order, other judges read what must be true of the text."""
    return behaviour.description if isinstance(judge, LocalJudge | EmbeddingJudge) else behaviour.criterion


def _identity(judge: Judge) -> JsonValue:
    if isinstance(judge, LlmJudge):
        return [judge.name, repr(judge.ask)]  # An endpoint shows its address and model there, and no key.
    return [judge.name, type(judge).__name__]


def _read(value: JsonValue) -> Grade | None:
    """A grade that was kept; None where there is none, or one of another version."""
    fields: Mapping[str, JsonValue] | None = value if isinstance(value, dict) else None
    try:
        return None if fields is None else _GRADE.validate_python(fields)
    except ValidationError:
        return None
