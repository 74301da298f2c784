"""A whole evaluation on the tiny model: everything is counted, nothing is done twice, and the files say the same."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.evals.eval_rig import PROMPTS, Letters, context_of

from steersman.engine.engine import Engine
from steersman.errors import DataError, EndpointError, SaeError
from steersman.evals import evaluate as running
from steersman.evals.evaluate import Tools, evaluate
from steersman.evals.facts import MEASURES, EvalSettings, Evaluation
from steersman.evals.report import html
from steersman.evals.tables import ANSWERS, REPORT, RESULTS, TABLE, write_results
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

    from dataclasses import replace

    found = _run(tiny, tmp_path, monkeypatch)
    evil = tuple(replace(each, answer="<script>alert(1)</script>") for each in found.samples)
    text = html(replace(found, samples=evil, description="<b>bold</b>"))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert {"svg", "polygon", "table"} <= page.seen
    assert not page.seen & {"script", "img", "link", "b"}
    assert "not fitted" in text


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
