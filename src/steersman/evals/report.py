"""The report of an evaluation as one page that stands on its own: no script, nothing fetched, light or dark.

Prompts and answers come from models and files: every text is escaped. Knows nothing of how methods are fitted or graded.
"""

from __future__ import annotations

from collections import Counter
from html import escape

from steersman.auto.page import count, drawn, facts, note, number, page, section, table, terms
from steersman.evals.facts import MEASURES, Evaluation, MethodResult, Sample
from steersman.evals.figures import LABELS, means, ordered, over_strength, trade_off
from steersman.evals.statistics import Paired
from steersman.version import __version__

_EXAMPLES = 3
_CERTAIN = 0.05
_REFERENCES = {"prompt": "prompting", "plain": "the plain model", "random": "a random vector"}
_METHODS = {
    "caa": "adds the mean difference of activations between answers with the behaviour and without.",
    "lat": "adds the main direction along which those differences lie.",
    "optimised": "adds one vector that was trained to prefer the answers with the behaviour.",
    "sae": "adds the direction of the single feature of a sparse autoencoder that makes the examples likeliest.",
    "sae-ts": "adds the vector that moves one feature and little else.",
    "topic": "raises the features that fire on texts closest to the examples.",
    "auto": "adds a weighted sum of a few features, as auto-steering finds it.",
    "prompt": "no steering: the behaviour is asked for in a system prompt.",
    "plain": "no steering: the model as it is.",
    "random": "control: a random vector of the same length.",
    "wrong-sign": "control: a recipe turned round, which should do the opposite.",
}
_JUDGES = {
    "likelihood": "the same model, unsteered: how much likelier the answer becomes when it is told to behave so.",
    "embedding": "sentence embeddings and wording: whether the answer is nearer to the examples or to the plain texts.",
    "llm": "a language model that is shown the criterion and the answer.",
}
_TERMS = {
    "behaviour": "how far the answer shows what was asked for.",
    "coherence": "whether it is sensible text about its prompt; low in loops and word salad.",
    "behaviour × coherence": "high only where both are; methods are ranked by it (SAE-TS, arXiv:2411.02193).",
    "harmonic mean": "of behaviour, relevance to the prompt and fluency, each from 0 to 2 (AxBench, arXiv:2501.17148).",
    "strength": "length of what is added, in mean lengths of the model's activations at that layer (residual norms).",
}


def html(found: Evaluation) -> str:
    """The page."""
    parts = (_summary, _facts, _compared, _scores, _tests, over_strength, trade_off, _examples, _battles, _gaps, _how)
    body = f'<p dir="auto">{escape(found.description)}</p>{"".join(part(found) for part in parts)}'
    return page("steersman evaluate", found.behaviour, body, ("report.css", "evals.css"))


def _summary(found: Evaluation) -> str:
    """What came out, in two sentences."""
    steering = [r for r in ordered(found) if not r.control and r.scores["product"].mean is not None]
    if not steering:
        return '<div class="verdict"><p><strong>No method that steers could be measured.</strong></p></div>'
    best = steering[0]
    product, paired = best.scores["product"], best.against.get("prompt")
    of = (
        f"the best of {len(steering)} by its mean, chosen after measuring"
        if len(steering) > 1
        else "the only one that steers"
    )
    against = f"Against prompting: {_words(paired)}." if paired else "It was not compared with prompting."
    return (
        f'<div class="verdict plain"><p><strong>{escape(best.name)}: behaviour × coherence {product.mean:.2f}</strong> '
        f"({_between(product.low, product.high)}), {of}.</p><p>{against}</p></div>"
    )


def _facts(found: Evaluation) -> str:
    said = {
        "model": found.model,
        "layer": str(found.layer),
        "sparse autoencoder": found.sae or "none",
        "judges": ", ".join(found.judges),
        "examples": found.examples,
        "prompts": f"{len(found.prompts)}, strength chosen on one half, reported on the other, both ways",
        "answers": f"{found.settings.tokens} tokens, greedy; seed {found.settings.seed}",
        "time": f"{found.seconds:.0f} s",
    }
    return facts(said)


def _compared(found: Evaluation) -> str:
    """What the methods do, and what the measures mean."""
    said = {result.name: _METHODS.get(result.name, "") or result.note for result in found.methods}
    intro = note(
        "Every method is to bring about the behaviour above in the same model. Numbers are means over the prompts."
    )
    judges = {judge: _JUDGES.get(judge.split()[0], "") for judge in found.judges}
    measured = _TERMS | {f"judge: {judge}": meaning for judge, meaning in judges.items()}
    return section("What is compared", f"{intro}{terms(said)}<h3>What is measured</h3>{terms(measured)}")


def _scores(found: Evaluation) -> str:
    rows = [
        (
            _name(result),
            *(number(result.scores[measure]) for measure in MEASURES),
            drawn(result.scores["product"]),
            count(result.scores["product"]),
            _strengths(result),
            "-" if result.best_product is None else f"{result.best_product:.2f}",
        )
        for result in ordered(found)
    ]
    heads = (
        "method",
        *LABELS.values(),
        "behaviour × coherence, 0 to 1",
        "scored",
        "strengths",
        "best product, in sample",
    )
    caption = (
        "Means with 95 % bootstrap intervals, best first; every prompt at the strength that was chosen on the other half of the "
        "prompts. The last column chooses and reports on the same prompts, as the SAE-TS paper does: it is too high by the "
        "choosing."
    )
    return section("Scores", table(caption, heads, rows, "scores") + means(found))


def _tests(found: Evaluation) -> str:
    references = [ref for ref in _REFERENCES if any(ref in result.against for result in found.methods)]
    rows = [
        (escape(result.name), *(_paired(result.against.get(ref)) for ref in references))
        for result in ordered(found)
        if result.against
    ]
    caption = (
        "Product of behaviour and coherence, method minus reference, prompt by prompt: mean difference, its 95 % interval, how "
        "many pairs, and p by a two-sided sign-flip test, then by Holm's correction over the methods that are compared with the "
        "same reference (controls are not counted among them, and have none). Bold: corrected p below 0.05."
    )
    least = 2 ** (1 - len(found.prompts))
    methods = sum(not result.control for result in found.methods)
    if methods * least >= _CERTAIN:
        caption += (
            f" Beware: with {len(found.prompts)} prompts p cannot be below {least:.2g}, nor its correction over {methods} "
            f"methods below {min(1.0, methods * least):.2g}: so few prompts can prove nothing here."
        )
    heads = ("method", *(f"minus {_REFERENCES[ref]}" for ref in references))
    return section("Against prompting and controls", table(caption, heads, rows, "tests"))


def _examples(found: Evaluation) -> str:
    swept = {result.name for result in found.methods if len(result.curve) > 1}
    chosen: dict[str, list[Sample]] = {}
    for sample in found.samples:
        if sample.chosen:
            chosen.setdefault(sample.prompt, []).append(sample)
    parts = []
    for prompt in found.prompts[:_EXAMPLES]:
        rows = [
            (
                escape(each.method),
                f"{each.strength:.3g}" if each.method in swept else "",
                f'<div dir="auto">{_text(each)}</div>',
                *("-" if value is None else f"{value:.2f}" for value in (each.behaviour, each.coherence, each.product)),
            )
            for each in chosen.get(prompt, [])
        ]
        heads = ("method", "strength", "answer", "behaviour", "coherence", "product")
        parts.append(table(f'<strong dir="auto">{escape(prompt)}</strong>', heads, rows, "texts"))
    said = note(
        f"To the first {len(parts)} of {len(found.prompts)} prompts, each at the strength that was chosen for it; they end after "
        f"{found.settings.tokens} tokens."
    )
    return section("Answers", said + "".join(parts))


def _battles(found: Evaluation) -> str:
    if not found.battles:
        return ""
    rows = [
        (
            f"{escape(b.one)} against {escape(b.other)}",
            str(b.wins),
            str(b.ties),
            str(b.losses),
            f"{b.total - b.missing} of {b.total}",
            "-" if b.p is None else f"{b.p:.2g}, corrected {b.p_holm or b.p:.2g}",
        )
        for b in found.battles
    ]
    caption = (
        "Answers side by side, judged in both orders; a win of the first holds in both, a disagreement is a tie. p: two-sided "
        "sign test of wins against losses, ties left out, then by Holm's correction over all pairs of methods."
    )
    return section("Battles", table(caption, ("methods", "wins", "ties", "losses", "judged", "p"), rows))


def _gaps(found: Evaluation) -> str:
    """Everything that could not be had, with the reasons."""
    failed = [(escape(r.name), "not fitted", escape(r.error)) for r in found.methods if r.error]
    reasons: dict[tuple[str, str], int] = {}
    for sample in found.samples:
        if sample.missing:
            reasons[sample.method, sample.missing] = reasons.get((sample.method, sample.missing), 0) + 1
    wanted = Counter(sample.method for sample in found.samples)
    rows = [
        *failed,
        *((escape(name), f"{n} of {wanted[name]} answers", escape(why)) for (name, why), n in reasons.items()),
    ]
    if not rows:
        return section("Gaps", f"<p>None: all {len(found.samples)} answers were written and graded.</p>")
    return section("Gaps", table("Not counted as 0 anywhere.", ("method", "what", "why"), rows))


def _how(found: Evaluation) -> str:
    said = (
        f"steersman {__version__}. The harmonic mean is made of twice the behaviour, twice the relevance to the prompt, and "
        "twice the fluency by the unsteered model. Intervals take the chosen strengths as given. Criterion of judges: "
        f"{found.criterion}"
    )
    return section("How it was measured", note(said))


def _name(result: MethodResult) -> str:
    about = ("control; " if result.control else "") + ("not fitted, see Gaps" if result.error else result.note)
    return f'{escape(result.name)} <small class="note">{escape(about)}</small>'


def _strengths(result: MethodResult) -> str:
    """The two that were chosen; one where they agree."""
    said = dict.fromkeys("-" if s is None else f"{s:.3g}" for s in result.strengths)
    return "none to choose" if len(result.curve) == 1 else " and ".join(said)


def _paired(paired: Paired | None) -> str:
    """A comparison as a cell."""
    if paired is None:
        return ""
    gap = paired.difference
    shown = number(gap, sign=True)
    if paired.p_holm is not None and paired.p_holm < _CERTAIN:
        shown = f"<strong>{shown}</strong>"
    p = "no p" if paired.p is None else f"p {paired.p:.2g}"
    corrected = "" if paired.p_holm is None else f", corrected {paired.p_holm:.2g}"
    return f'{shown}<small class="unit">{count(gap)}; {p}{corrected}</small>'


def _words(paired: Paired) -> str:
    """A comparison as a sentence."""
    gap = paired.difference
    kind, p = ("p", paired.p) if paired.p_holm is None else ("corrected p", paired.p_holm)
    if gap.mean is None or p is None:
        return "could not be measured"
    said = "no certain difference" if p >= _CERTAIN else "better" if gap.mean > 0 else "worse"
    return f"{said}; {gap.mean:+z.2f} ({_between(gap.low, gap.high, '+z.2f')}), {kind} {p:.2g}"


def _between(low: float | None, high: float | None, form: str = ".2f") -> str:
    return "no interval" if low is None or high is None else f"95 % interval {low:{form}} to {high:{form}}"


def _text(sample: Sample) -> str:
    if sample.answer is None:
        return f'<span class="none">({escape(sample.missing or "no answer")})</span>'
    return escape(sample.answer) if sample.answer.strip() else '<span class="none">(empty)</span>'
