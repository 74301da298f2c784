"""A whole evaluation on the tiny model: everything is counted, nothing is done twice, and the files say the same."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.evals.eval_rig import PROMPTS, Letters, context_of

from steersman.engine.engine import Engine
from steersman.errors import Conflict, DataError, EndpointError, SaeError
from steersman.evals import evaluate as running
from steersman.evals.charts import Series, Spot, curves, front
from steersman.evals.evaluate import Tools, evaluate
from steersman.evals.facts import MEASURES, EvalSettings, Evaluation
from steersman.evals.report import html
from steersman.evals.store import RUN_FILE, check_folder, claim
from steersman.evals.tables import ANSWERS, REPORT, RESULTS, TABLE, write_results
from steersman.intervals import Interval
from steersman.models.language_model import LanguageModel

SETTINGS = EvalSettings(prompts=6, strengths=(0.2, 0.8), tokens=6, tuning=6, validation=1)
METHODS = ["caa", "sae", "random", "wrong-sign"]


def _run(
    model: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch, judge: Letters | None = None
) -> Evaluation:
    context, _ = context_of(model)
    monkeypatch.setattr(running, "LocalJudge", lambda *_: judge or Letters())
    tools = Tools(context.encoder, sae=None)
    return evaluate(
        context.engine, context.behaviour, folder, tools=tools, methods=METHODS, settings=SETTINGS, prompts=PROMPTS
    )


def test_an_evaluation_counts_everything(tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _run(tiny, tmp_path, monkeypatch, Letters(forbidden="three"))
    results = {each.name: each for each in found.methods}
    assert list(results) == ["caa", "sae", "prompt", "plain", "random", "wrong-sign"]
    for name, each in results.items():
        scored = 0 if name == "sae" else 5
        assert {(s.n, s.total) for m, s in each.scores.items() if m != "harmonic"} == {(scored, 6)}
    assert results["sae"].error
    assert results["sae"].scores["product"].mean is None
    assert len(results["caa"].curve) == 2
    assert len(results["plain"].curve) == 1
    # Corrected over the methods that steer; the controls are compared, but not counted.
    paired = results["caa"].against["prompt"]
    assert paired.p_holm == paired.p
    assert results["random"].against["prompt"].p_holm is None
    assert len(found.samples) == 6 * (3 * 2 + 2)
    assert sum(each.chosen for each in found.samples) == 6 * 5
    assert sum(each.missing is not None for each in found.samples) == 3 * 2 + 2
    chosen = [each for each in found.samples if each.chosen and each.method == "caa"]
    products = [each.product for each in chosen if each.product is not None]
    assert results["caa"].scores["product"].mean == pytest.approx(sum(products) / 5)


def test_a_second_run_writes_and_grades_nothing(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _run(tiny, tmp_path, monkeypatch)
    judge = Letters()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "submit", lambda *_: pytest.fail("written again"))
        second = _run(tiny, tmp_path, patch, judge)
    assert judge.calls == []
    assert second.methods == first.methods
    assert second.samples == first.samples


def test_the_files_say_what_was_found(tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _run(tiny, tmp_path, monkeypatch)
    assert write_results(found, tmp_path) == tmp_path / REPORT
    facts = json.loads((tmp_path / RESULTS).read_text())
    rows = list(csv.DictReader((tmp_path / TABLE).read_text().splitlines()))
    answers = list(csv.DictReader(io.StringIO((tmp_path / ANSWERS).read_text(encoding="utf-8"), newline="")))
    assert [row["method"] for row in rows] == [each["name"] for each in facts["methods"]]
    assert len(answers) == len(found.samples)
    for row, each in zip(rows, found.methods, strict=True):
        for measure in MEASURES:
            mean = each.scores[measure].mean
            assert row[measure] == ("" if mean is None else str(mean))


def test_the_report_stands_on_its_own_and_escapes_what_models_say(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.seen: set[str] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)
            assert not {name for name, _ in attrs} & {"src", "href", "onload"}
            if tag not in ("meta", "br"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    found = _run(tiny, tmp_path, monkeypatch)
    evil = tuple(replace(each, answer="<script>alert(1)</script>") for each in found.samples)
    text = html(replace(found, samples=evil, description="<b>bold</b>"))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert {"svg", "polygon", "table"} <= page.seen
    assert not page.seen & {"script", "img", "link", "b"}
    assert "not fitted" in text
    # Measured on 6 prompts: the best method that steers is named, with how sure that is.
    assert re.search(r"<strong>caa: behaviour × coherence \d\.\d\d</strong>", text)
    assert "corrected p " in text


def test_a_report_without_a_method_that_steers_says_so(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _run(tiny, tmp_path, monkeypatch)
    controls = tuple(each for each in found.methods if each.control)
    assert "No method that steers could be measured." in html(replace(found, methods=controls))


# --- charts


def _interval(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.1, high=mean + 0.1, n=4, total=4)


def test_curves_are_drawn_inside_on_a_logarithmic_axis_with_a_colour_each() -> None:
    series = [Series(f"m{n}", tuple((x, _interval(0.5)) for x in (0.06, 0.12, 0.24, 1.5)), colour=n) for n in range(12)]
    svg = curves(series, title="t", x_label="x", levels=[("plain", 0.5), ("<b>", 0.51), ("gone", None)])
    paths = re.findall(r'<polyline class="curve s(\d+)" points="([^"]+)"', svg)
    assert len({colour for colour, _ in paths}) == 12
    across = [float(pair.split(",")[0]) for pair in paths[0][1].split()]
    assert all(0 <= x <= 460 for x in across)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)  # Doubling is a step of one length.
    assert svg.count('class="level"') == 2
    assert "plain, &lt;b&gt;" in svg  # Too near for a name each.
    assert "gone" not in svg


def test_names_on_the_front_do_not_cover_each_other_and_stay_inside() -> None:
    points = [Spot(f"method-{n}", 0.1 + 0.005 * n, 1.0 - 0.001 * n, n) for n in range(8)]
    points += [Spot("far", 0.98, 0.2, 8, " at <2>")]
    svg = front(points, title="t", x_label="x", y_label="y")
    assert "<title>far at &lt;2&gt;: 0.98, 0.20</title>" in svg
    named = re.findall(r'<text class="tick" x="([\d.]+)" y="([\d.]+)">([a-z0-9-]+)</text>', svg)
    assert "far" in [name for *_, name in named]
    for x, y, name in named:
        assert 0 <= float(x) <= 460 - 7 * len(name)
        assert 0 <= float(y) <= 240
    places = [(float(x), float(y), len(name)) for x, y, name in named]
    for at, (x, y, length) in enumerate(places):
        for other_x, other_y, other in places[:at]:
            assert abs(y - other_y) >= 11 or x + 7 * length <= other_x or other_x + 7 * other <= x


def test_names_on_the_front_stand_beside_its_line() -> None:
    svg = front([Spot("one", 0.2, 0.8), Spot("two", 0.6, 0.75)], title="t", x_label="x", y_label="y")
    (begin, end) = ((float(x), float(y)) for x, y in re.findall(r'<circle[^>]* cx="([\d.]+)" cy="([\d.]+)"', svg))
    named = re.findall(r'<text class="tick" x="([\d.]+)" y="([\d.]+)">(one|two)</text>', svg)
    assert len(named) == 2
    for x, y, name in named:
        left, bottom, wide = float(x), float(y), 7 * len(name)
        for step in range(101):
            across, up = (a + (b - a) * step / 100 for a, b in zip(begin, end, strict=True))
            assert not (left <= across <= left + wide and bottom - 10 <= up <= bottom)


def test_names_of_lines_across_are_drawn_above_the_curves() -> None:
    svg = curves(
        [Series("m", ((0.1, _interval(0.5)), (1.0, _interval(0.5))))], title="t", x_label="x", levels=[("p", 0.5)]
    )
    assert svg.index("<polyline") < svg.index(">p</text>")


def test_so_few_prompts_that_nothing_can_be_proven_are_said_to_be(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _run(tiny, tmp_path, monkeypatch)
    # Two methods that steer and 4 prompts: 2 / 2^4 twice.
    assert "p cannot be below 0.12, nor its correction over 2 methods below 0.25" in html(
        replace(found, prompts=found.prompts[:4])
    )
    assert "cannot be below" not in html(replace(found, prompts=found.prompts * 2))


def test_a_folder_is_free_until_it_holds_results(tmp_path: Path) -> None:
    question = {"seed": 0, "name": "a"}
    check_folder(tmp_path / "none", question, {REPORT})
    (tmp_path / "notes.txt").write_text("mine")
    check_folder(tmp_path, question, {REPORT})
    claim(tmp_path, {"seed": 1, "name": "a"})  # A run that ended before it had results.
    check_folder(tmp_path, question, {REPORT})
    (tmp_path / REPORT).write_text("old")
    with pytest.raises(Conflict, match=r"seed: 1 there, 0 here.*--force"):
        check_folder(tmp_path, question, {REPORT})
    claim(tmp_path, question)
    check_folder(tmp_path, question, {REPORT})
    for damage in (b"[]", b"{", None):
        (tmp_path / RUN_FILE).write_bytes(damage) if damage is not None else (tmp_path / RUN_FILE).unlink()
        with pytest.raises(Conflict, match="not of this run"):
            check_folder(tmp_path, question, {REPORT})
    with pytest.raises(DataError, match="as a folder"):
        check_folder(tmp_path / REPORT, question, {REPORT})


def test_wrong_questions_are_refused_before_anything_is_written(tiny: LanguageModel, tmp_path: Path) -> None:
    context, _ = context_of(tiny)

    def ask(tools: Tools, **more: object) -> None:
        evaluate(context.engine, context.behaviour, tmp_path / "run", tools=tools, **more)  # type: ignore[arg-type]

    with pytest.raises(DataError, match="did you mean 'local'"):
        ask(Tools(context.encoder, judges="locl"))
    with pytest.raises(EndpointError, match="STEERSMAN_LLM_URL"):
        ask(Tools(context.encoder, judges="local+llm"))
    with pytest.raises(DataError, match="unknown method"):
        ask(Tools(context.encoder), methods=["ca"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(SaeError, match="there is no SAE"):
        ask(Tools(context.encoder, sae="nowhere"))


@pytest.mark.parametrize(
    "wrong", [{"prompts": 3}, {"tokens": 0}, {"strengths": ()}, {"strengths": (0.1, 0.1)}, {"strengths": (-1.0,)}]
)
def test_settings_that_cannot_be_run_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError):
        EvalSettings(**wrong)  # type: ignore[arg-type]
