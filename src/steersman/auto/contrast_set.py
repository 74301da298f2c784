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
"""Answers to pairs of what the user says and a system prompt, in one batch."""

SYSTEM = "{behaviour}. Always answer like this, whatever you are asked."
"""How a system prompt asks for a behaviour."""
PHRASINGS: tuple[tuple[str, str | None], ...] = (
    ("{prompt} {behaviour}.", SYSTEM),
    ("{prompt} {behaviour}.", None),
)
"""Ways to ask for a behaviour, each what the user says and the system prompt; the best answer to each prompt is kept. Small
models often ignore a system prompt: what stands behind the question shows more (docs/log.md)."""

OWN_ANSWERS = "the model's own answers"
"""Source of a contrast set that the model wrote."""
MIN_ITEMS = 6
_MIN_GAIN = 0.1
_REFUSALS = ("i'm sorry", "i am sorry", "i cannot", "i can't", "as an ai", "i'm unable", "i am unable")


def system_prompt(behaviour: Behaviour) -> str:
    """A system prompt that asks for a behaviour."""
    return SYSTEM.format(behaviour=_imperative(behaviour))


def phrasings(behaviour: Behaviour, prompt: str) -> list[tuple[str, str | None]]:
    """Ways to ask for a behaviour: what the user says, and the system prompt if there is one."""
    said = _imperative(behaviour)
    return [
        (user.format(prompt=prompt, behaviour=said), system and system.format(behaviour=said))
        for user, system in PHRASINGS
    ]


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
    told_to = [asked for _, prompt in flat for asked in phrasings(behaviour, prompt)]
    written = answers([*((prompt, None) for _, prompt in flat), *told_to])
    plain, told = written[: len(flat)], written[len(flat) :]
    n = len(PHRASINGS)
    judged = [prompt for _, prompt in flat] + [prompt for _, prompt in flat for _ in range(n)]
    verdicts = judge.judge(
        behaviour.description, [Answered(prompt, text) for prompt, text in zip(judged, written, strict=True)]
    )
    dropped: Counter[str] = Counter()
    kept: dict[str, list[ContrastItem]] = {"train": [], "validation": []}
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
        source=OWN_ANSWERS,
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


def _imperative(behaviour: Behaviour) -> str:
    """The description as a sentence without its full stop."""
    said = " ".join(behaviour.description.split()).rstrip(".!")
    return said[:1].upper() + said[1:]
