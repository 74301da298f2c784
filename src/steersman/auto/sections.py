"""The parts of the report of an auto-steering run, each a section of HTML that a newcomer can read.

Labels, prompts and answers come from models and files: every text is escaped. Knows nothing of how a recipe is found.
"""

from __future__ import annotations

from html import escape

from steersman.auto.charts import bar, line_chart
from steersman.auto.facts import AutoResult, Scores
from steersman.auto.page import count, drawn, note, number, section, table, terms
from steersman.intervals import Interval

_MEASURES = ("behaviour", "coherence", "product")
_WAYS = {
    "plain": "the model as it is",
    "steered": "with this recipe",
    "prompted": "asked for the behaviour in a system prompt",
    "random": "a random vector of the same length",
}
_TERMS = {
    "behaviour": "how far the answer shows what was asked for, 0 to 1.",
    "coherence": "whether it is sensible text about its prompt, 0 to 1; low in loops and word salad.",
    "product": "behaviour times coherence: high only where both are. The verdict rests on it.",
    "95 % interval": "where the mean would likely lie with other prompts of this kind (bootstrap over the prompts).",
    "random": "shows what any push of that size does: a recipe that does not beat it says nothing of the behaviour.",
}
_JUDGES = {
    "likelihood": "how much likelier the unsteered model finds the answer when it is told to behave so.",
    "embedding": "whether a sentence encoder places the answer with the examples of the behaviour or with the plain ones.",
    "llm": "a language model grades the answer in words.",
}
_SHOWN = 4
"""Pairs of examples."""


def answers(result: AutoResult) -> str:
    """Answers to held-out prompts side by side: plain, steered, prompted."""
    rows = "".join(
        f'<tr><th colspan="3" scope="rowgroup" dir="auto">{escape(each.prompt)}</th></tr><tr>'
        f'<td data-way="plain" dir="auto">{_text(each.plain)}</td>'
        f'<td data-way="steered" class="steered" dir="auto">{_text(each.steered)}</td>'
        f'<td data-way="prompted" dir="auto">{_text(each.prompted)}</td></tr>'
        for each in result.evidence.examples
    )
    if not rows:
        return section("Before and after", '<p class="none">No answers were kept.</p>')
    head = "".join(
        f'<th scope="col">{way} <small class="note">{_WAYS[way]}</small></th>'
        for way in ("plain", "steered", "prompted")
    )
    caption = "Answers to prompts that nothing was tuned on, as they came; long ones are cut off."
    table_ = f'<table class="examples"><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return section("Before and after", f'<div class="wide">{table_}</div>')


def proof(result: AutoResult) -> str:
    """Scores of the four ways of answering, their differences, what it costs, and what the words mean."""
    evidence = result.evidence
    told = table(
        "Mean over the unseen prompts, with its 95 % interval below.",
        ("way of answering", *_MEASURES, "product, 0 to 1", "scored"),
        [
            (f"{escape(way)} <small class='note'>{_WAYS.get(way, '')}</small>", *_score_cells(scores))
            for way, scores in evidence.scores.items()
        ],
    )
    differences = {
        "plain": evidence.against_plain,
        "random": evidence.against_random,
        "prompted": evidence.against_prompted,
    }
    gaps = table(
        "Product of steered answers minus that of each other way, prompt by prompt. The proof needs the first two above 0.",
        ("steered minus", "difference", "-1 to 1", "reading", "pairs"),
        [(way, number(gap, sign=True), drawn(gap, -1.0), reading(gap), count(gap)) for way, gap in differences.items()],
    )
    accuracy = evidence.choice_accuracy
    cost = (
        f"What it costs: multiple-choice questions of general knowledge answered rightly: plain {accuracy.plain:.1%}, "
        f"steered {accuracy.steered:.1%} (of {accuracy.n})."
        if accuracy
        else "What steering costs on multiple-choice questions was not measured."
    )
    judges = {f"judge: {name}": _JUDGES[name] for name in evidence.judges if name in _JUDGES}
    return section("Evidence", f"{told}{gaps}<p>{cost}</p>{terms(_TERMS | judges)}")


def features(result: AutoResult) -> str:
    """What the recipe is made of."""
    largest = max((abs(each.weight) for each in result.features), default=0.0)
    order = sorted(result.features, key=lambda each: -abs(each.weight))
    rows = [(str(f.id), _label(f.label), bar(f.weight, largest), f"{f.weight:+.3f}") for f in order]
    caption = (
        "A feature is a direction in the model's activations that stands for something in the text. Their directions (decoder "
        "rows), weighted and summed, are what is added at every token; below 0: pushed away from. Labels say on what words or "
        "topics a feature fires; they were made by machine and may be wrong."
    )
    return section("Features", table(caption, ("id", "label", "", "weight"), rows, "labels"))


def tuning(result: AutoResult) -> str:
    """Score by strength, and of the weights by step."""
    mark = min(result.strengths, key=lambda length: abs(length - result.strength), default=None)
    strengths = line_chart(
        list(result.strengths.items()),
        title="Score by strength, the chosen one ringed",
        x_label="strength (mean residual norms); 0: plain",
        y_label="behaviour × coherence",
        mark=mark,
    )
    gradient = "gradient" in result.recipe.method
    steps = line_chart(
        [(each.step, each.score) for each in result.history],
        title="Score of the weights by step",
        x_label="step",
        y_label="log-likelihood, nats a token" if gradient else "validation score",
    )
    said = (
        "Both on validation prompts, which are neither those of the proof nor those that weights are trained on. Strength is the "
        "length of what is added, as a multiple of the usual length of the model's activations at that layer: too little does "
        "nothing, too much breaks the text."
    )
    if gradient:
        said += (
            " Weights are trained to make answers that show the behaviour likelier. Features are dropped on the way, which costs "
            "some of the score; the best weights with few enough features are kept."
        )
    return section("How it was tuned", f'{note(said)}<div class="charts">{strengths}{steps}</div>')


def examples(result: AutoResult) -> str:
    """What the behaviour was learnt from, and what was left out."""
    given = result.contrast
    dropped = ", ".join(f"{why} ({n})" for why, n in given.dropped.items())
    said = (
        "Each is a pair of answers to the same prompt, one with the behaviour and a plain one. Pairs to train on: "
        f"{len(given.train)}; to validate with: {len(given.validation)}. Source: {given.source}. Left out, and why: "
        f"{dropped or 'none'}."
    )
    shown = given.train[:_SHOWN]
    rows = [
        (escape(each.prompt), f'<div dir="auto">{_text(each.positive)}</div>', f'<div dir="auto">{_text(each.negative)}</div>')
        for each in shown
    ]  # fmt: skip
    pairs = table("As they were used.", ("prompt", "with the behaviour", "plain"), rows, "pairs")
    folded = f"<details><summary>{len(shown)} of them</summary>{pairs}</details>" if shown else ""
    return section("Examples it learnt from", f'<p dir="auto">{escape(said)}</p>{folded}')


def candidates(result: AutoResult) -> str:
    """All features that were considered, folded."""
    used = {each.id: f"{each.weight:+.3f}" for each in result.features}
    rows = [
        (
            str(c.id),
            _label(c.label),
            ", ".join(c.sources),
            f"{c.score:+.3f}",
            used.get(c.id, ""),
            escape(", ".join(c.marks)),
        )
        for c in result.candidates
    ]
    caption = (
        "Found by: gradient (adding it makes the examples likelier), contrast (fires differently in the two answers), search "
        "(its label is near the description). Score: of the source that ranks it best, at most 1; below 0: to be pushed down. "
        "Marked features are doubtful: they fire everywhere, only on formatting, or never."
    )
    made = table(caption, ("id", "label", "found by", "score", "weight, if used", "marks"), rows, "labels")
    return section("Candidates", f"<details><summary>{len(rows)} features were considered</summary>{made}</details>")


def _text(answer: str) -> str:
    return escape(answer) if answer.strip() else '<span class="none">(empty)</span>'


def _label(label: str | None) -> str:
    return f'<span dir="auto">{escape(label or "(no label)")}</span>'


def reading(gap: Interval) -> str:
    """An interval of a difference in words."""
    if gap.low is None or gap.high is None:
        return "could not be compared"
    if gap.low > 0:
        return "steered answers are better"
    return "steered answers are worse" if gap.high < 0 else "no clear difference"


def _score_cells(scores: Scores) -> tuple[str, ...]:
    measured = (number(getattr(scores, name)) for name in _MEASURES)
    return (*measured, drawn(scores.product), count(scores.product))
