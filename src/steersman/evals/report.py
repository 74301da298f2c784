"""The report of an evaluation as one page that stands on its own: no script, nothing fetched, light or dark.

Prompts and answers come from models and files: every text is escaped. Knows nothing of how methods are fitted or graded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from steersman.auto.charts import whisker
from steersman.evals.charts import Series, bars, curves, front, legend
from steersman.evals.facts import MEASURES, Evaluation, MethodResult, Sample
from steersman.intervals import Interval
from steersman.version import __version__

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_EXAMPLES = 3
_LABELS = {
    "behaviour": "behaviour, 0 to 1",
    "coherence": "coherence, 0 to 1",
    "product": "behaviour × coherence",
    "harmonic": "harmonic mean, 0 to 2",
}
_REFERENCES = {"prompt": "prompting", "plain": "the plain model", "random": "a random vector"}


def html(found: Evaluation) -> str:
    """The page."""
    style = "".join(
        (resources.files("steersman") / "data" / name).read_text(encoding="utf-8")
        for name in ("report.css", "evals.css")
    )
    title = escape(found.behaviour)
    parts = (_facts, _scores, _bars, _tests, _curves, _pareto, _examples, _battles, _gaps, _how)
    body = "".join(part(found) for part in parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>'
        f'<style>{style}</style></head><body><main><p class="over">steersman evaluate</p>'
        f'<h1 dir="auto">{title}</h1><p dir="auto">{escape(found.description)}</p>{body}</main></body></html>\n'
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
    return f"<dl>{''.join(f'<div><dt>{key}</dt><dd>{escape(value)}</dd></div>' for key, value in said.items())}</dl>"


def _scores(found: Evaluation) -> str:
    rows = [
        (
            _name(result),
            *(_number(result.scores[measure]) for measure in MEASURES),
            _whisker(result.scores["product"]),
            f"{result.scores['product'].n} / {result.scores['product'].total}",
            " and ".join("-" if s is None else f"{s:.3g}" for s in result.strengths),
            "-" if result.best_product is None else f"{result.best_product:.2f}",
        )
        for result in _ordered(found)
    ]
    heads = ("method", *_LABELS.values(), "", "scored", "strengths", "best product, in sample")
    caption = (
        "Means with 95 % bootstrap intervals, every prompt at the strength that was chosen on the other half of the prompts. "
        "The last column chooses and reports on the same prompts, as the SAE-TS paper does: it is too high by the choosing."
    )
    return _section("Scores", _table(caption, heads, rows))


def _bars(found: Evaluation) -> str:
    colours = _colours(found)
    ordered = _ordered(found)
    drawn = [
        bars(
            [(r.name, r.scores[m], colours[r.name]) for r in ordered],
            title=_LABELS[m],
            top=2.0 if m == "harmonic" else 1.0,
        )
        for m in MEASURES
    ]
    return f'<div class="charts">{"".join(drawn)}</div>'


def _tests(found: Evaluation) -> str:
    rows = []
    for result in _ordered(found):
        for ref, paired in result.against.items():
            gap = paired.difference
            p, holm = ("-" if p is None else f"{p:.3g}" for p in (paired.p, paired.p_holm))
            rows.append(
                (_name(result), _REFERENCES.get(ref, ref), _number(gap, sign=True), f"{gap.n} / {gap.total}", p, holm)
            )
    caption = (
        "Product, method minus reference, prompt by prompt; two-sided sign-flip test; Holm's correction over the methods that "
        "are compared with the same reference (controls are not counted among them)."
    )
    return _section("Against prompting and controls", _table(
        caption, ("method", "against", "difference", "pairs", "p", "p, corrected"), rows
    ))  # fmt: skip


def _curves(found: Evaluation) -> str:
    colours = _colours(found)
    swept = [result for result in found.methods if len(result.curve) > 1]
    drawn = [
        curves(
            [
                Series(
                    result.name,
                    tuple((point.strength, getattr(point, measure)) for point in result.curve),
                    tuple(s for s in result.strengths if s is not None) if measure == "product" else (),
                    colours[result.name],
                )
                for result in swept
            ],
            title=_LABELS[measure] + (", the chosen strengths ringed" if measure == "product" else ""),
            x_label="strength (mean residual norms; for methods of another unit, their factor)",
        )
        for measure in MEASURES
    ]
    key = legend([(result.name, colours[result.name]) for result in swept])
    return _section("Over strength", f'{key}<div class="charts">{"".join(drawn)}</div>')


def _pareto(found: Evaluation) -> str:
    colours = _colours(found)
    points = [
        (result.name, point.behaviour.mean, point.coherence.mean, colours[result.name])
        for result in found.methods
        for point in result.curve
        if point.behaviour.mean is not None and point.coherence.mean is not None
    ]
    drawn = front(points, title="Every method at every strength", x_label="behaviour", y_label="coherence")
    key = legend([(result.name, colours[result.name]) for result in found.methods])
    note = '<p class="note">On the line nothing else has both more behaviour and more coherence. All prompts, nothing chosen.</p>'
    return _section("Behaviour against coherence", f"{key}{drawn}{note}")


def _examples(found: Evaluation) -> str:
    chosen: dict[str, list[Sample]] = {}
    for sample in found.samples:
        if sample.chosen:
            chosen.setdefault(sample.prompt, []).append(sample)
    parts = []
    for prompt in found.prompts[:_EXAMPLES]:
        rows = [
            (
                escape(each.method),
                f"{each.strength:.3g}",
                escape(each.answer if each.answer is not None else f"({each.missing})"),
                *("-" if value is None else f"{value:.2f}" for value in (each.behaviour, each.coherence, each.product)),
            )
            for each in chosen.get(prompt, [])
        ]
        heads = ("method", "strength", "answer", "behaviour", "coherence", "product")
        parts.append(f'<div class="texts">{_table(escape(prompt), heads, rows)}</div>')
    return _section("Answers", "".join(parts))


def _battles(found: Evaluation) -> str:
    if not found.battles:
        return ""
    rows = [
        (
            f"{escape(b.one)} against {escape(b.other)}",
            str(b.wins),
            str(b.ties),
            str(b.losses),
            f"{b.total - b.missing} / {b.total}",
        )
        for b in found.battles
    ]
    caption = "Judged in both orders; a win holds in both, a disagreement is a tie."
    return _section("Battles", _table(caption, ("", "wins", "ties", "losses", "judged"), rows))


def _gaps(found: Evaluation) -> str:
    """Everything that could not be had, with the reasons."""
    failed = [(escape(r.name), "not fitted", escape(r.error)) for r in found.methods if r.error]
    reasons: dict[tuple[str, str], int] = {}
    for sample in found.samples:
        if sample.missing:
            reasons[sample.method, sample.missing] = reasons.get((sample.method, sample.missing), 0) + 1
    rows = [*failed, *((escape(name), f"{n} answers", escape(why)) for (name, why), n in reasons.items())]
    if not rows:
        return _section("Gaps", f"<p>None: all {len(found.samples)} answers were written and graded.</p>")
    return _section("Gaps", _table("Not counted as 0 anywhere.", ("method", "what", "why"), rows))


def _how(found: Evaluation) -> str:
    said = (
        f"steersman {__version__}. Product: behaviour times coherence (SAE-TS, arXiv:2411.02193). Harmonic mean: of concept, "
        "instruction and fluency, 0 to 2 (AxBench, arXiv:2501.17148), here twice the behaviour, twice the relevance to the "
        "prompt, and twice the fluency by the unsteered model. Intervals take the chosen strengths as given. Criterion of "
        f"judges: {found.criterion}"
    )
    return _section("How it was measured", f'<p class="note" dir="auto">{escape(said)}</p>')


def _ordered(found: Evaluation) -> list[MethodResult]:
    """Best product first; what was not measured last."""
    return sorted(
        found.methods, key=lambda r: -(-1.0 if r.scores["product"].mean is None else r.scores["product"].mean)
    )


def _colours(found: Evaluation) -> dict[str, int]:
    return {result.name: number for number, result in enumerate(found.methods)}


def _name(result: MethodResult) -> str:
    about = ("control; " if result.control else "") + (result.error or result.note)
    return f'{escape(result.name)} <small class="note">{escape(about)}</small>'


def _number(interval: Interval, *, sign: bool = False) -> str:
    if interval.mean is None:
        return "not measured"
    form = "+.2f" if sign else ".2f"
    around = "" if interval.low is None or interval.high is None else f"{interval.low:{form}} to {interval.high:{form}}"
    return f'{interval.mean:{form}} <small class="unit">{around}</small>'


def _whisker(interval: Interval) -> str:
    if interval.mean is None or interval.low is None or interval.high is None:
        return ""
    return whisker(interval.mean, interval.low, interval.high)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first of each row is its heading."""
    head = "".join(f'<th scope="col">{text}</th>' if text else "<td></td>" for text in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    table = f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'
