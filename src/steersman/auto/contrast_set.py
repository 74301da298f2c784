"""Examples of a behaviour from its description alone: the model's own answers when told to behave so, and its plain ones.

Knows prompts, answers and a judge; nothing of features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from steersman.auto.facts import Behaviour, ContrastItem, ContrastSet, Report
from steersman.errors import DataError
from steersman.judges.facts import Answered, Judge, Verdict

Answers = Callable[[Sequence[tuple[str, str | None]]], list[str]]
"""Answers to (prompt, system prompt) pairs, in one batch."""

PHRASINGS = (
    "{behaviour}. Always answer like this, whatever you are asked.",
    "You are an assistant with one rule that shows in every sentence you write: {behaviour}.",
    "Answer the user's question. While you do so, {behaviour_lower}.",
)
"""Ways to ask for a behaviour in a system prompt; the best answer to each prompt is kept."""

MIN_ITEMS = 6
_MIN_GAIN = 0.1
_REFUSALS = ("i'm sorry", "i am sorry", "i cannot", "i can't", "as an ai", "i'm unable", "i am unable")


def phrasings(behaviour: Behaviour) -> tuple[str, ...]:
    """System prompts that ask for a behaviour."""
    said = behaviour.description.strip().rstrip(".!")
    upper, lower = said[:1].upper() + said[1:], said[:1].lower() + said[1:]
    return tuple(phrasing.format(behaviour=upper, behaviour_lower=lower) for phrasing in PHRASINGS)


def make_contrast_set(
    behaviour: Behaviour,
    prompts: Mapping[str, Sequence[str]],
    answers: Answers,
    judge: Judge,
    report: Report,
) -> ContrastSet:
    """Let the model answer prompts plainly and as asked to behave, and keep the pairs that show the behaviour.

    Of each prompt's answers the one that the judge finds best is kept. It is dropped where it is empty, a refusal, the plain
    answer again, or not more of the behaviour than that.

    Args:
        behaviour: to be shown.
        prompts: for `train` and `validation`.
        answers: of the model.
        judge: of the answers.
        report: told how many were kept.

    Raises:
        DataError: fewer than six positives are left: the model does not show the behaviour even when it is told to.
    """
    flat = [(side, prompt) for side in ("train", "validation") for prompt in prompts[side]]
    systems = phrasings(behaviour)
    asked = [(prompt, None) for _, prompt in flat] + [(prompt, system) for _, prompt in flat for system in systems]
    written = answers(asked)
    plain, told = written[: len(flat)], written[len(flat) :]
    verdicts = judge.judge(
        behaviour.description, [Answered(prompt, text) for (prompt, _), text in zip(asked, written, strict=True)]
    )
    dropped: Counter[str] = Counter()
    kept: dict[str, list[ContrastItem]] = {"train": [], "validation": []}
    n = len(systems)
    for number, (side, prompt) in enumerate(flat):
        chosen = slice(number * n, (number + 1) * n)
        own = list(zip(told[chosen], verdicts[len(flat) :][chosen], strict=True))
        text, verdict = max(own, key=lambda pair: -1.0 if pair[1].product is None else pair[1].product)
        why = _fault(text, plain[number], verdict, verdicts[number])
        if why:
            dropped[why] += 1
        else:
            kept[side].append(ContrastItem(prompt=prompt, positive=text, negative=plain[number]))
    report("contrast", {"kept": sum(map(len, kept.values())), "dropped": dict(dropped)})
    if len(kept["train"]) < MIN_ITEMS or not kept["validation"]:
        reasons = ", ".join(f"{count} {why}" for why, count in dropped.most_common())
        raise DataError(
            f"the model shows this behaviour in {len(kept['train'])} of {len(prompts['train'])} answers even when told to "
            f"({reasons}); say it in other words, give examples of it, or choose another model"
        )
    return ContrastSet(
        train=tuple(kept["train"]),
        validation=tuple(kept["validation"]),
        dropped=dict(dropped),
        source="the model's own answers",
    )


def from_examples(items: Sequence[ContrastItem]) -> ContrastSet:
    """A contrast set of the user's own examples; every fourth one validates.

    Raises:
        DataError: fewer than six to train on.
    """
    train = tuple(item for number, item in enumerate(items) if number % 4 != 3)
    if len(train) < MIN_ITEMS:
        raise DataError(f"{len(items)} examples are too few; give at least {MIN_ITEMS + 2}")
    return ContrastSet(train=train, validation=tuple(items[3::4]), dropped={}, source="examples")


def _fault(text: str, plain: str, verdict: Verdict, of_plain: Verdict) -> str | None:
    """Why an answer is no positive; None where it is one."""
    if not text.strip():
        return "empty"
    if text.strip().lower().startswith(_REFUSALS):
        return "refusals"
    if text.strip() == plain.strip():
        return "like the plain answer"
    if verdict.behaviour is None or of_plain.behaviour is None:
        return "not judged"
    if verdict.behaviour < of_plain.behaviour + _MIN_GAIN:
        return "without the behaviour"
    return None
