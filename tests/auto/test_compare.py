"""Experiments: every combination once, a line a run, nothing repeated, failures told, and a table and plot that say what was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.auto.scripted import Script

from steersman.auto.compare import LOG_FILE, compare
from steersman.auto.compare_report import ALL, Ended, Outcome, rows_of, table_of
from steersman.auto.experiment import Experiment, Run, experiment_of, read_experiment, runs_of
from steersman.auto.facts import Epoch, Tuned
from steersman.auto.optimise.bayes import Bayes
from steersman.auto.optimise.chain import Chain
from steersman.auto.optimise.textgrad import TextGrad
from steersman.errors import DataError, EndpointError, StorageError

TOML = """
behaviours = ["talk like a pirate", "explain to children"]
scorers = ["critique", "outputs"]
judge_prompts = ["rubric", "strict"]
features = [3, 5]
epochs = [4]
seeds = [0, 1]

[optimisers.textgrad]
max_strength = 0.5

[optimisers.search]
method = "bayes"
trials = 6

[optimisers.both]
method = "bayes+textgrad"
bayes = { trials = 3, features = 2 }
textgrad = { critique = false }
"""
SMALL: dict[str, Any] = {"behaviours": ["one", "two"], "optimisers": {"bayes": {}}, "seeds": [0, 1, 2]}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "experiment.toml"
    path.write_text(TOML)
    return read_experiment(path)


def outcome(run: Run) -> Outcome:
    top = 0.2 + 0.1 * run.seed + (0.3 if run.behaviour == "two" else 0.0)
    return Outcome(score=top, history=((0, 0.1), (1, top), (2, 0.05)), seconds=2.0)


class Doing:
    """Does runs, and remembers which."""

    def __init__(self, do: Callable[[Run], Outcome] = outcome) -> None:
        self.do, self.done = do, list[Run]()

    def __call__(self, run: Run) -> Outcome:
        self.done.append(run)
        return self.do(run)


# --- what is run


def test_all_combinations_once_without_axes_that_an_optimiser_lacks(experiment: Experiment) -> None:
    runs = runs_of(experiment)
    count = {name: sum(run.name == name for run in runs) for name in experiment.optimisers}
    # behaviours x judge prompts x seeds, x features x scorers for textgrad.
    assert count == {"textgrad": 8 * 2 * 2, "search": 8 * 2, "both": 8 * 2}
    assert len({run.key for run in runs}) == len(runs)
    assert {run.scorer for run in runs if run.name == "textgrad"} == {"critique", "outputs"}
    assert {run.scorer for run in runs if run.name != "textgrad"} == {None}  # "both" fixes its own.
    assert {run.epochs for run in runs if run.name == "search"} == {None}


def test_a_run_sets_its_optimiser(experiment: Experiment) -> None:
    ask = Script()
    runs = {(run.name, run.scorer, run.features): run for run in runs_of(experiment)}
    assert runs["textgrad", "outputs", 3].optimiser(ask) == TextGrad(
        ask=ask, epochs=4, features=3, critique=False, max_strength=0.5
    )
    assert runs["search", None, 5].optimiser() == Bayes(trials=6, features=5)
    assert runs["both", None, 5].optimiser(ask) == Chain(
        Bayes(trials=3, features=2), TextGrad(ask=ask, epochs=4, features=5, critique=False)
    )
    with pytest.raises(EndpointError, match="STEERSMAN_LLM_URL"):
        runs["both", None, 5].optimiser()


def test_defaults_leave_optimisers_as_they_are() -> None:
    (run,) = runs_of(experiment_of({"behaviours": ["b"], "optimisers": {"bayes": {}}}))
    assert run.optimiser() == Bayes()
    assert (run.judge_prompt, run.features, run.epochs, run.seed) == (None, None, None, 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"behaviors": ["x"]}, "did you mean 'behaviours'"),
        ({"behaviours": []}, "behaviours is empty"),
        ({"behaviours": None}, "behaviours must be a list of texts"),
        ({"behaviours": "talk"}, "must be a list"),
        ({"behaviours": [" "]}, "the behaviour is empty"),
        ({"optimisers": {}}, "needs optimisers"),
        ({"optimisers": {"bayes": 3}}, "optimisers.bayes must be a table"),
        ({"optimisers": {"baies": {}}}, "did you mean 'bayes'"),
        ({"optimisers": {"mine": {"method": 3}}}, "method must be a name"),
        ({"optimisers": {"bayes": {"trails": 3}}}, "did you mean 'trials'"),
        ({"optimisers": {"bayes": {"trials": 0}}}, "trials must be 1 or more"),
        ({"optimisers": {"b": {"method": "bayes+textgrad", "trials": 3}}}, "under the names of its parts"),
        ({"optimisers": {"b": {"method": "bayes+textgrad", "bayes": 3}}}, "must be a table of settings, not 3"),
        ({"scorers": ["critic"]}, "unknown scorer 'critic'"),
        ({"judge_prompts": ["rubrik"]}, "did you mean 'rubric'"),
        ({"features": [0]}, "features must be 1 or more"),
        ({"features": ["5"]}, "list of whole numbers"),
        ({"seeds": [True]}, "list of whole numbers"),
        ({"seeds": [-1]}, "seeds must be 0 or more"),
        ({"epochs": 5}, "epochs must be a list"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        experiment_of({**SMALL, **change})


@pytest.mark.parametrize(
    ("text", "told"), [("a = ", "is not TOML"), ("behaviour = ['x']", "did you mean 'behaviours'")]
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "e.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=told) as caught:
        read_experiment(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="no experiment"):
        read_experiment(tmp_path / "none.toml")
    with pytest.raises(DataError, match="cannot read"):
        read_experiment(tmp_path)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="is not TOML"):
        read_experiment(path)


# --- running


def test_every_run_is_one_line_and_none_is_repeated(tmp_path: Path) -> None:
    first, again, told = Doing(), Doing(), list[tuple[int, int]]()
    once = compare(experiment_of(SMALL), first, tmp_path, on_run=lambda _, n, total: told.append((n, total)))
    assert told == [(n, 6) for n in range(1, 7)]
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [line["run"]["behaviour"] for line in lines] == ["one"] * 3 + ["two"] * 3
    assert [line["outcome"]["score"] for line in lines] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    twice = compare(experiment_of(SMALL), again, tmp_path)
    assert again.done == []
    assert twice.rows == once.rows
    assert (once.repeated, twice.repeated) == (0, 6)
    assert len((tmp_path / LOG_FILE).read_text().splitlines()) == 6


def test_more_seeds_later_run_alone(tmp_path: Path) -> None:
    compare(experiment_of(SMALL), Doing(), tmp_path)
    more = Doing()
    found = compare(experiment_of({**SMALL, "seeds": [0, 1, 2, 3]}), more, tmp_path)
    assert [(run.behaviour, run.seed) for run in more.done] == [("one", 3), ("two", 3)]
    assert found.rows[1].score.n == 4


def test_other_settings_are_other_runs(tmp_path: Path) -> None:
    compare(experiment_of(SMALL), Doing(), tmp_path)
    other = Doing()
    compare(experiment_of({**SMALL, "optimisers": {"bayes": {"trials": 9}}}), other, tmp_path)
    assert len(other.done) == 6


def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    def until_two(run: Run) -> Outcome:
        if run.behaviour == "two":
            raise KeyboardInterrupt
        return outcome(run)

    with pytest.raises(KeyboardInterrupt):
        compare(experiment_of(SMALL), until_two, tmp_path)
    assert "one" in (tmp_path / "table.md").read_text()
    rest = Doing()
    assert compare(experiment_of(SMALL), rest, tmp_path).repeated == 3
    assert {run.behaviour for run in rest.done} == {"two"}


def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    compare(experiment_of(SMALL), Doing(), tmp_path)
    log = tmp_path / LOG_FILE
    log.write_bytes(log.read_bytes()[:-40])
    rest = Doing()
    assert compare(experiment_of(SMALL), rest, tmp_path).repeated == 5
    assert len(rest.done) == 1
    assert compare(experiment_of(SMALL), Doing(), tmp_path).repeated == 6


def test_a_run_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    def moody(run: Run) -> Outcome:
        if run.seed == 1:
            raise EndpointError("it is | down")
        return outcome(run)

    found = compare(experiment_of(SMALL), moody, tmp_path)
    assert [each.error for each in found.failed] == ["it is | down"] * 2
    row = next(row for row in found.rows if row.behaviour == "one")
    assert (row.score.n, row.score.total, row.error) == (2, 3, "it is | down")
    assert row.score.mean == pytest.approx(0.3)
    assert "| 2 / 3 |" in (tmp_path / "table.md").read_text()
    again = Doing()
    found = compare(experiment_of(SMALL), again, tmp_path)
    assert [run.seed for run in again.done] == [1, 1]
    assert not found.failed


def test_an_error_that_is_not_ours_is_not_hidden(tmp_path: Path) -> None:
    def broken(_: Run) -> Outcome:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compare(experiment_of(SMALL), broken, tmp_path)


def test_a_log_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_text('{"event": "start"}\n')
    with pytest.raises(DataError, match=r"line 1 of .*runs\.jsonl is not of this version"):
        compare(experiment_of(SMALL), Doing(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        compare(experiment_of(SMALL), Doing(), tmp_path / "file" / "deeper")


# --- what is made of it


def test_rows_join_seeds_and_rank_within_a_behaviour() -> None:
    runs = runs_of(experiment_of({**SMALL, "features": [2, 4]}))
    ended = [Ended(run=run, outcome=outcome(run) if run.features == 4 else Outcome(score=0.9)) for run in runs]
    rows = rows_of(ended)
    assert [(row.behaviour, row.features) for row in rows] == [(b, f) for b in (ALL, "one", "two") for f in (2, 4)]
    assert rows[3].score.mean == pytest.approx(0.3)
    assert rows[1].score.mean == pytest.approx((0.3 + 0.6) / 2)
    assert (rows[3].steps, rows[3].seconds, rows[2].steps) == (1.0, 2.0, None)
    lines = table_of(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_a_missing_score_is_counted_and_never_0() -> None:
    runs = runs_of(experiment_of({**SMALL, "behaviours": ["one"]}))
    ended = [Ended(run=run, outcome=Outcome(score=None, missing="no judge")) for run in runs[:2]]
    (row,) = rows_of([*ended, Ended(run=runs[2], outcome=Outcome(score=0.5))])
    assert (row.score.mean, row.score.n, row.score.total, row.error) == (0.5, 1, 3, "no judge")


def test_the_plots_are_pictures_with_all_lines(tmp_path: Path) -> None:
    odd = {**SMALL, "behaviours": ["cost $5 & <b>", "two_{x}$ 像海盗"], "features": [2, 4]}
    compare(experiment_of(odd), outcome, tmp_path)
    root = ElementTree.parse(tmp_path / "scores.svg").getroot()
    assert root.tag.endswith("svg")
    assert (tmp_path / "scores.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lines = [each for each in root.iter() if each.get("id", "").startswith("line2d")]
    assert len(lines) >= 2 * 2 * (3 + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "results.json",
        LOG_FILE,
        "scores.png",
        "scores.svg",
        "table.md",
    ]


def test_a_plot_of_nothing_is_still_a_plot(tmp_path: Path) -> None:
    compare(experiment_of(SMALL), lambda _: Outcome(score=0.5), tmp_path)
    assert (tmp_path / "scores.svg").stat().st_size > 100


def test_a_plot_says_who_is_not_in_it(tmp_path: Path) -> None:
    def silent(run: Run) -> Outcome:
        return outcome(run) if run.features == 2 else Outcome(score=0.5)

    compare(experiment_of({**SMALL, "features": [2, 4]}), silent, tmp_path)
    text = (tmp_path / "scores.svg").read_text()
    assert "not drawn, no epoch scored by a judge: bayes, 4 features" in text
    assert "bayes, 2 features" in text


def test_outcomes_of_a_tuning_keep_judged_epochs_alone() -> None:
    history = (Epoch(step=0, score=-2.0, weights={}), Epoch(step=1, score=0.4, weights={3: 0.1}))
    made = Outcome.of(Tuned(weights={3: 0.1}, history=history, method="both", strength=0.1), 0.6, 3.0)
    assert made.history == ((1, 0.4),)
    assert made.facts["weights"] == {"3": 0.1}


@pytest.mark.parametrize("facts", [{"score": 1.2}, {"score": None}, {"score": 0.5, "missing": "why"}])
def test_outcomes_that_make_no_sense_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Outcome(**facts)
    with pytest.raises(DataError):
        Outcome(score=0.5, history=((1, 7.0),))
