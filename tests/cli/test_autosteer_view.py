"""`steersman autosteer`: what it shows as it goes, what it leaves, and with which exit code; the run itself is scripted."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from tests.auto.results import FEATURES, auto_result
from tests.cli.conftest import PAIRS, Run
from tests.sae.toys import toy_config
from tests.tiny import D_MODEL

from steersman.auto.facts import AutoResult
from steersman.auto.report import LOG, RECIPE, REPORT
from steersman.cli import autosteer, main
from steersman.cli.autosteer_view import Best, Watch, clean, line, picture, sparkline, strongest, watching
from steersman.errors import EndpointError
from steersman.files import sole_use
from steersman.sae.file import save_sae
from steersman.sae.model import SparseAutoencoder
from steersman.steering.recipe_file import load_recipe

EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("stage", {"name": "contrast set", "seconds": 0.5}),
    ("contrast", {"kept": 38, "dropped": {"refusals": 2}}),
    ("stage", {"name": "candidates", "seconds": 12.0}),
    ("candidates", {"features": [
        {"id": 17, "label": "simple [bold]words[/bold]", "score": 1.0, "sources": ["gradient"]},
        {"id": 4, "label": "bad \x1b[31m label\nof two lines", "score": -0.5, "sources": ["search"]},
        {"id": 9, "label": None, "score": 0.1, "sources": ["contrast"]},
    ]}),
    ("step", {"step": 0, "score": -3.0, "weights": {"17": 0.1, "4": -0.1, "9": 0.0}}),
    ("step", {"step": 4, "score": -2.0, "weights": {"17": 0.3, "4": -0.2, "9": 0.05}}),
    ("step", {"step": 8, "score": -2.5, "weights": {"17": 0.4}}),
    ("strength", {"strength": 0.0, "score": 0.2}),
    ("strength", {"strength": 0.25, "score": 0.6}),
    ("strength", {"strength": 0.5, "score": 0.6}),
    ("proof", {"way": "steered", "n": 16}),
    ("result", {"verdict": "proven", "why": "so", "seconds": 80.0}),
]  # fmt: skip


def _watched(events: list[tuple[str, dict[str, Any]]] = EVENTS) -> Watch:
    watch = Watch("talk simply")
    for name, facts in events:
        watch(name, facts)
    return watch


def _drawn(watch: Watch, width: int = 90) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(picture(watch))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


# --- the view


def test_the_watch_keeps_the_best_weights_and_the_weakest_best_strength() -> None:
    watch = _watched()
    assert watch.best == Best({17: 0.3, 4: -0.2, 9: 0.05}, -2.0, None)
    assert watch.strength == 0.25
    assert _watched(EVENTS[:8]).strength is None  # Strength 0 is the best: nothing has helped.


def test_scores_that_are_no_numbers_are_never_the_best() -> None:
    events = [("step", {"step": i, "score": s, "weights": {"1": 1.0}}) for i, s in enumerate((math.nan, math.inf))]
    assert _watched(events).best is None
    assert _watched(events).scores == ()


def test_the_best_that_an_optimiser_names_counts_and_another_methods_scores_are_not_compared() -> None:
    weights = {"17": 0.3}
    watch = _watched([("step", {"step": 0, "score": 9.0, "weights": {"1": 1.0}}), ("best", {"weights": weights})])
    assert watch.best == Best({17: 0.3}, None, None)
    watch("step", {"step": 0, "method": "bayes", "score": 0.2, "weights": {"2": 1.0}, "strength": 0.4})
    watch("step", {"step": 1, "method": "bayes", "score": 0.1, "weights": {"3": 1.0}, "strength": 0.5})
    assert watch.best == Best({2: 1.0}, 0.2, 0.4)
    assert watch.scores == (0.2, 0.1)


@pytest.mark.parametrize("n", range(len(EVENTS) + 1))
def test_the_picture_can_be_drawn_after_every_event(n: int) -> None:
    assert "talk simply" in _drawn(_watched(EVENTS[:n]))


def test_the_picture_shows_features_scores_and_where_it_stands() -> None:
    text = _drawn(_watched())
    for said in (
        "17",
        "simple [bold]words[/bold]",
        "+0.400",
        "38 kept, dropped: 2 refusals",
        "best -2.000",
        "best at 0.25",
    ):
        assert said in text, said
    assert "✓ contrast set 12 s" in text
    assert "… candidates" in text
    assert "\x1b" not in text


def test_a_narrow_terminal_gets_a_picture_too() -> None:
    assert max(map(len, _drawn(_watched(), width=30).splitlines())) <= 30


def test_a_sparkline_goes_from_the_lowest_to_the_highest_value() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([1.0, math.nan, 0.0]) == "█▁"
    assert len(set(sparkline([3.0, 3.0, 3.0]))) == 1
    assert sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(200)], width=50)) == 50


def test_no_text_steers_a_terminal() -> None:
    assert clean("a\x1b[2Jb\r\n\tc\u202ed\u0007") == "a [2Jb c d"
    lines = [text for name, facts in EVENTS if (text := line(name, facts, _watched()))]
    assert len(lines) == len(EVENTS) - 1
    assert all(text.isprintable() for text in lines)


def test_the_strongest_features_come_first_whatever_their_sign() -> None:
    assert list(strongest({1: 0.1, 2: -0.5, 3: 0.3}, 2).items()) == [(2, -0.5), (3, 0.3)]


def test_on_a_terminal_the_picture_is_drawn_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with watching(Watch("talk simply")) as report:
        for name, facts in EVENTS:
            report(name, facts)
    assert "simple [bold]words[/bold]" in screen.getvalue()
    assert screen.getvalue().rstrip("\n").endswith("\x1b[2K")  # The last thing is that a line is wiped.


# --- the command


Script = Callable[..., AutoResult]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], dict[str, Any]]:
    """Put a script in place of the run; what it was called with is kept."""
    extra = typer.Typer()
    extra.command("autosteer")(autosteer.autosteer)
    monkeypatch.setattr(main.app, "registered_commands", [*main.app.registered_commands, *extra.registered_commands])
    monkeypatch.setattr(autosteer, "load_encoder", lambda: None)

    def put(script: Script) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def run(engine: Any, behaviour: Any, **options: Any) -> AutoResult:
            given.update(options, engine=engine, behaviour=behaviour)
            return script(options["report"])

        monkeypatch.setattr("steersman.auto.autosteer.autosteer", run)
        return given

    return put


def _ends_with(result: AutoResult, events: list[tuple[str, dict[str, Any]]] = EVENTS) -> Script:
    def script(report: Callable[[str, dict[str, Any]], None]) -> AutoResult:
        for name, facts in events:
            report(name, facts)
        return result

    return script


def _stops_with(error: BaseException, events: list[tuple[str, dict[str, Any]]]) -> Script:
    def script(report: Callable[[str, dict[str, Any]], None]) -> AutoResult:
        for name, facts in events:
            report(name, facts)
        raise error

    return script


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """An SAE of the tiny model."""
    made = torch.Generator().manual_seed(0)
    rows = torch.randn(20, D_MODEL, generator=made) * 0.2
    config = toy_config("relu", d_model=D_MODEL, d_sae=20, layer=2)
    sae = SparseAutoencoder(config, W_enc=rows.T, b_enc=torch.zeros(20), W_dec=rows, b_dec=torch.zeros(D_MODEL))
    save_sae(sae, tmp_path / "toy-sae")
    return tmp_path / "toy-sae"


def test_a_proven_recipe_is_written_and_summed_up(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    given = scripted(_ends_with(auto_result()))
    to = tmp_path / "out"
    outcome = run(
        "autosteer", "talk simply", "--opposite", "talk like a book", "--out", to, "--model", folder, "--seed", 5
    )
    assert outcome.code == 0, outcome.err
    assert {RECIPE, REPORT, LOG} <= {path.name for path in to.iterdir()}
    assert "Proven" in outcome.out
    for said in ("simple words for children", "0.63", "15 of 16", str(to / REPORT).rsplit("/", 1)[1]):
        assert said in outcome.out, said
    assert "step 4: score -2.0000" in outcome.err
    assert "\x1b" not in outcome.out + outcome.err
    assert given["behaviour"].opposite == "talk like a book"
    assert (given["settings"].seed, given["sae"], given["judge"], given["contrast"]) == (5, "default", None, None)
    assert given["optimiser"].features == 8
    assert given["engine"].limits.slots >= 32


def test_json_is_one_object_and_nothing_else_on_standard_output(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    scripted(_ends_with(auto_result()))
    facts = run("autosteer", "talk simply", "--out", tmp_path, "--model", folder, "--json").facts
    assert facts["verdict"] == "proven"
    assert [each["id"] for each in facts["features"]] == [each.id for each in FEATURES]
    assert facts["recipe"] == str(tmp_path / RECIPE)


@pytest.mark.parametrize("verdict", ["not proven", "no effect"])
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_not_proven_is_written_too_but_ends_with_3_and_the_reason(
    verdict: Any,
    as_json: bool,
    run: Run,
    scripted: Callable[[Script], dict[str, Any]],
    folder: Path,
    tmp_path: Path,
) -> None:
    result = auto_result(verdict)
    scripted(_ends_with(result))
    outcome = run("autosteer", "x", "--out", tmp_path, "--model", folder, *(["--json"] if as_json else []))
    assert outcome.code == autosteer.UNPROVEN == 3
    assert f"{verdict}: the evidence does not support this behaviour: {result.evidence.why}" in outcome.err
    assert (tmp_path / RECIPE).exists()
    if as_json:
        assert json.loads(outcome.out)["verdict"] == verdict


def test_an_interrupted_run_keeps_the_best_so_far(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, toy: Path, tmp_path: Path
) -> None:
    scripted(_stops_with(KeyboardInterrupt(), EVENTS[:7]))
    outcome = run("autosteer", "talk simply", "--out", tmp_path, "--model", folder, "--sae", toy, "--features", 2)
    assert outcome.code == 130
    assert "2 features" in outcome.err
    assert "nothing proven" in outcome.err
    assert outcome.out == ""
    kept = tmp_path / autosteer.INTERRUPTED_RECIPE
    recipe = load_recipe(kept)
    [edit] = recipe.edits
    assert [(f.id, f.weight) for f in edit.features] == [(17, 0.3), (4, -0.2)]  # type: ignore[union-attr]
    assert 0.1 <= edit.strength <= 0.5  # Two unit rows with weights 0.3 and -0.2, summed.
    assert recipe.evidence is None
    assert recipe.sae is not None
    answer = run("generate", "--recipe", kept, "--model", folder, "-p", "hi", "--max-tokens", 3, "--json")
    assert answer.code == 0, answer.err


def test_an_interrupt_after_strengths_were_tried_keeps_the_best_of_them(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, toy: Path, tmp_path: Path
) -> None:
    scripted(_stops_with(KeyboardInterrupt(), EVENTS[:10]))
    assert run("autosteer", "x", "--out", tmp_path, "--model", folder, "--sae", toy).code == 130
    assert load_recipe(tmp_path / autosteer.INTERRUPTED_RECIPE).edits[0].strength == 0.25


def test_the_strength_that_an_optimiser_chose_is_kept_too(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, toy: Path, tmp_path: Path
) -> None:
    best = {"method": "bayes", "score": 0.5, "weights": {"3": 0.9}, "strength": 0.33}
    scripted(_stops_with(KeyboardInterrupt(), [*EVENTS[:7], ("best", best)]))
    assert run("autosteer", "x", "--out", tmp_path, "--model", folder, "--sae", toy).code == 130
    assert load_recipe(tmp_path / autosteer.INTERRUPTED_RECIPE).edits[0].strength == 0.33


def test_an_interrupt_before_any_weights_saves_nothing_and_says_so(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    scripted(_stops_with(KeyboardInterrupt(), EVENTS[:4]))
    outcome = run("autosteer", "x", "--out", tmp_path / "out", "--model", folder)
    assert outcome.code == 130
    assert "nothing is saved" in outcome.err
    assert not (tmp_path / "out").exists()


def test_an_error_on_the_way_keeps_the_best_so_far_and_is_said_in_one_line(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, toy: Path, tmp_path: Path
) -> None:
    scripted(_stops_with(EndpointError("the endpoint has gone"), EVENTS[:7]))
    outcome = run("autosteer", "x", "--out", tmp_path, "--model", folder, "--sae", toy)
    assert outcome.code == 1
    assert outcome.err.endswith("error: the endpoint has gone\n")
    assert (tmp_path / autosteer.INTERRUPTED_RECIPE).exists()


def test_an_earlier_result_is_not_replaced_unasked(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    scripted(_ends_with(auto_result()))
    arguments = ("autosteer", "x", "--out", tmp_path, "--model", folder)
    assert run(*arguments).code == 0
    refused = run(*arguments)
    assert refused.code == 1
    assert "--force" in refused.err
    assert run(*arguments, "--force").code == 0


def test_examples_of_ones_own_become_the_contrast_set(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    given = scripted(_ends_with(auto_result()))
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({**PAIRS[0], "prompt": f"{PAIRS[0]['prompt']} {i}"}) + "\n" for i in range(12)))
    assert run("autosteer", "x", "--out", tmp_path / "a", "--model", folder, "--examples", path).code == 0
    assert len(given["contrast"].train) + len(given["contrast"].validation) == 12
    assert given["contrast"].train[0].positive == PAIRS[0]["positive"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--judge", "mayor"), "use local or llm"),
        (("--judge", "llm"), "STEERSMAN_LLM_URL"),
        (("--optimiser", "gradient+textgrad"), "STEERSMAN_LLM_URL"),
        (("--optimiser", "gradeint"), "unknown optimiser 'gradeint'"),
        (("--features", 0), "--features"),
        (("--examples", "pairs-of-texts.jsonl"), "--examples, pair 1"),
    ],
)
def test_wrong_wishes_are_refused_before_the_work(
    arguments: tuple[object, ...],
    said: str,
    run: Run,
    scripted: Callable[[Script], dict[str, Any]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(_stops_with(AssertionError("the run was begun"), []))
    monkeypatch.chdir(tmp_path)
    texts = [{"positive": "arr", "negative": "yes"}, {"positive": "ahoy", "negative": "no"}]
    Path("pairs-of-texts.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in texts))
    outcome = run("autosteer", "x", "--out", tmp_path / "out", "--model", folder, *arguments)
    assert outcome.code in (1, 2)
    assert said in outcome.err


def test_an_endpoint_that_nobody_asks_for_is_not_looked_at(
    run: Run,
    scripted: Callable[[Script], dict[str, Any]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(_ends_with(auto_result()))
    monkeypatch.setenv("STEERSMAN_LLM_URL", "https://far.example/v1")  # Offline, it would be refused.
    monkeypatch.setenv("STEERSMAN_LLM_MODEL", "far")
    arguments = ("autosteer", "x", "--out", tmp_path, "--model", folder)
    assert run(*arguments).code == 0
    refused = run(*arguments, "--force", "--judge", "llm")
    assert refused.code == 1
    assert "offline" in refused.err


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ("  ", "behaviour is empty"),
        ("Be formal and casual.", "error: the behaviour contradicts itself: 'formal' and 'casual' exclude each other"),
    ],
)
def test_a_description_that_asks_for_nothing_possible_is_refused(
    run: Run, scripted: Callable[[Script], dict[str, Any]], tmp_path: Path, description: str, said: str
) -> None:
    scripted(_stops_with(AssertionError("the run was begun"), []))
    outcome = run("autosteer", description, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert said in outcome.err


def test_a_folder_in_which_another_run_works_is_left_alone(
    run: Run, scripted: Callable[[Script], dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    scripted(_ends_with(auto_result()))
    arguments = ("autosteer", "x", "--out", tmp_path / "out", "--model", folder)
    with sole_use(tmp_path / "out"):
        refused = run(*arguments)
        assert refused.code == 1
        assert "another run works in" in refused.err
        assert list((tmp_path / "out").iterdir()) == []
    assert run(*arguments).code == 0
    with sole_use(tmp_path / "out"):
        pass  # It was given back.
