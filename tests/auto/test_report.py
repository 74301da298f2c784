"""The report says what the result says, stands on its own, and lets no text become markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.auto.results import FEATURES, NASTY, auto_result, evidence, interval, scores

from steersman.auto.charts import bar, line_chart, ticks, whisker
from steersman.auto.facts import AutoResult, ContrastItem, ContrastSet, Epoch, Example
from steersman.auto.report import LOG, RECIPE, REPORT, VERDICTS, html, result_json, write_report
from steersman.errors import StorageError
from steersman.intervals import Interval
from steersman.steering.recipe_file import load_recipe

_VOID = {"meta", "br"}
_INLINE_SVG = {"line", "polyline", "circle", "rect"}


class _Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order; keeps tags, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.svgs: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "svg":
            self.svgs.append(dict(attrs))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _INLINE_SVG
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def _page(result: AutoResult) -> _Page:
    return _Page(html(result, Path("out/recipe.json")))


def test_the_page_is_sound_and_no_text_becomes_markup() -> None:
    page = _page(auto_result())
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 5  # The behaviour, its title, a label, a candidate, an answer: as they stand.
    assert "What is <b>money</b>?" in page.text


def test_the_page_asks_for_nothing_from_outside() -> None:
    page = _page(auto_result())
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "srcset", "action", "xlink:href", "style"} & names
    assert not [name for name in names if name.startswith("on")]
    style = page.texts[page.texts.index(next(text for text in page.texts if ":root" in text))]
    assert not re.search(r"url\(|@import|https?:", style)
    assert "prefers-color-scheme: dark" in style


def test_tables_have_captions_and_headings_for_screen_readers() -> None:
    page = _page(auto_result())
    assert page.tags.count("caption") == page.tags.count("table") >= 5
    assert {value for name, value in page.attributes if name == "scope"} == {"col", "row", "rowgroup"}
    # A drawing is described, or it repeats a number that stands beside it.
    assert len(page.svgs) == 12
    assert all(
        svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg["aria-label"]) for svg in page.svgs
    )


def test_the_page_names_what_was_found_and_measured() -> None:
    page = _page(auto_result())
    for feature in FEATURES:
        assert str(feature.id) in page.texts
        assert f"{feature.weight:+.3f}" in page.texts
    for said in (
        "plain 70.0%, steered 68.0%",
        "(of 60)",
        "15 of 16",
        "+0.44",
        "0.53 to 0.73",
        "fires everywhere",
        "(no label)",
    ):
        assert said in page.text, said


def test_the_examples_are_shown_with_their_source_and_what_was_left_out_and_why() -> None:
    pair = ContrastItem(prompt="Why?", positive=NASTY, negative="Because.")
    contrast = ContrastSet(
        train=(pair,) * 9, validation=(pair,), dropped={NASTY: 3, "refusals": 2}, source="a <b>file</b>"
    )
    page = _page(auto_result(contrast=contrast))
    for said in ("train on: 9", "validate with: 1", "a <b>file</b>", f"{NASTY} (3)", "refusals (2)"):
        assert said in page.text, said
    assert page.texts.count("Why?") == 4  # The first few.
    assert not {"script", "b"} & set(page.tags)


@pytest.mark.parametrize(
    ("difference", "reading"),
    [
        (interval(0.3), "steered answers are better"),
        (interval(-0.3), "steered answers are worse"),
        (interval(0.05), "no clear difference"),
        (interval(None, n=0), "could not be compared"),
    ],
)
def test_a_difference_is_read_by_its_interval(difference: Interval, reading: str) -> None:
    page = _page(auto_result(evidence=evidence(against_prompted=difference)))
    assert f"in a system prompt: {reading}." in page.text
    assert reading in page.texts


def test_an_empty_answer_is_said_to_be_empty() -> None:
    nothing = Example(prompt="What?", plain="Something.", steered=" ", prompted="")
    assert _page(auto_result(evidence=evidence(examples=(nothing,)))).texts.count("(empty)") == 2


def test_what_rounds_to_0_has_no_minus() -> None:
    page = _page(auto_result(evidence=evidence(against_random=interval(-0.001, spread=0.003))))
    assert "+0.00 to +0.00" in page.texts
    assert "-0.00" not in page.text


@pytest.mark.parametrize("verdict", list(VERDICTS))
def test_every_verdict_is_said_in_words(verdict: str) -> None:
    page = _page(auto_result(verdict))  # type: ignore[arg-type]
    assert VERDICTS[verdict][1] in page.text
    assert evidence().why in page.text.replace("Steered", "steered")


def test_what_was_not_measured_is_said_and_never_drawn_as_0() -> None:
    missing = interval(None, n=0)
    part = scores(0.2, 0.9)
    nothing = type(part)(behaviour=missing, coherence=missing, product=missing)
    result = auto_result(
        "not proven",
        history=(),
        strengths={},
        candidates=(),
        features=(),
        evidence=evidence("not proven", scores={"plain": part, "steered": nothing}, choice_accuracy=None, examples=()),
    )
    page = _page(result)
    assert page.texts.count("not measured") == 3
    assert "0 of 16" in page.texts
    assert page.text.count("Nothing was measured.") == 2
    assert "was not measured" in page.text
    assert result_json(result)["choice_accuracy"] is None
    assert result_json(result)["scores"]["steered"]["product"] is None


def test_the_files_hold_the_whole_result(tmp_path: Path) -> None:
    result = auto_result()
    folder = tmp_path / "deep" / "a folder"
    assert write_report(result, folder) == folder / RECIPE
    assert load_recipe(folder / RECIPE) == result.recipe
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    assert tuple(map(json.loads, lines)) == result.log
    page = _Page((folder / REPORT).read_text(encoding="utf-8"))
    assert f"--recipe '{folder / RECIPE}'" in page.text  # As a shell wants it.
    assert sorted(path.name for path in folder.iterdir()) == [LOG, RECIPE, "recipe.safetensors", REPORT]


def test_the_log_and_json_hold_no_number_that_json_has_not(tmp_path: Path) -> None:
    result = auto_result(
        log=({"event": "step", "score": -math.inf, "weights": {"3": math.nan}, "note": "half \ud800"},),
        history=(Epoch(step=0, score=-math.inf, weights={}), Epoch(step=1, score=math.nan, weights={})),
        seconds=math.nan,
    )
    write_report(result, tmp_path)
    [line] = (tmp_path / LOG).read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["score"] is None
    assert "Nothing was measured." in _Page((tmp_path / REPORT).read_text(encoding="utf-8")).text
    json.dumps(result_json(result), allow_nan=False)


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        write_report(auto_result(), tmp_path / "file" / "out")


def test_the_json_has_exactly_the_promised_keys() -> None:
    facts = result_json(auto_result(), Path("out/recipe.json"))
    assert set(facts) == {
        *("behaviour", "features", "strength", "scores", "choice_accuracy", "examples", "seconds", "verdict", "recipe")
    }
    assert facts["features"][0] == {"id": 17, "label": "simple words for children", "weight": 0.31}
    assert set(facts["scores"]) == {"plain", "steered", "prompted", "random"}
    for measured in facts["scores"].values():
        assert set(measured) == {"behaviour", "coherence", "product", "intervals"}
        for name, around in measured["intervals"].items():
            assert around["low"] <= measured[name] <= around["high"]
            assert around["n"] <= around["total"] == 16
    assert facts["choice_accuracy"] == {"plain": 0.7, "steered": 0.68}
    assert set(facts["examples"][0]) == {"prompt", "plain", "steered", "prompted"}
    assert (facts["verdict"], facts["recipe"]) == ("proven", "out/recipe.json")


# --- charts


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.31, -2.97), (5.0, 5.0), (0.0, 0.0), (-1e-7, 2e-7), (3, 90_000)]
)
def test_ticks_enclose_the_values_evenly_and_are_few(low: float, high: float) -> None:
    found = ticks(low, high)
    steps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert found[0] <= low + 1e-9 * abs(low) + 1e-12
    assert found[-1] >= high - 1e-9 * abs(high) - 1e-12
    assert 2 <= len(found) <= 8
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)


def test_points_are_drawn_inside_the_chart_in_order_and_the_chosen_one_is_ringed() -> None:
    svg = line_chart([(2, 0.5), (0, 0.1), (1, math.nan), (3, 0.2)], title="<t>", x_label="x", y_label="y", mark=2)
    found = re.search(r'points="([^"]+)"', svg)
    assert found
    places = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    assert len(places) == 3
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert all(0 <= x <= 460 and 0 <= y <= 220 for x, y in places)
    assert places[1][1] == min(y for _, y in places)  # Higher is further up.
    assert svg.count('class="mark"') == 1
    assert "<t>" not in svg


def test_a_chart_of_one_point_is_drawn() -> None:
    assert "NaN" not in line_chart([(0, 5)], title="one", x_label="x", y_label="y").replace("nan", "NaN")


def test_bars_go_left_below_0_and_stay_inside() -> None:
    assert 'x="60.0" y="2" width="60.0"' in bar(2.0, 2.0)
    assert 'class="bar down" x="30.0" y="2" width="30.0"' in bar(-1.0, 2.0)
    assert 'width="0.0"' in bar(math.nan, 1.0)
    assert 'width="0.0"' in bar(0.0, 0.0)
    assert 'x1="4.0" x2="116.0"' in whisker(0.5, -0.2, 1.3)


def test_a_scale_that_goes_below_0_marks_it() -> None:
    assert "zero" not in whisker(0.5, 0.4, 0.6)
    drawing = whisker(0.0, -1.0, 1.0, bottom=-1.0)
    assert 'class="axis zero" x1="60.0" x2="60.0"' in drawing
    assert 'x1="4.0" x2="116.0"' in drawing
    assert 'cx="60.0"' in drawing
