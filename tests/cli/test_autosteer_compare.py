"""`steersman autosteer-compare`: every combination once, kept as it is done; the tuning is scripted, but for one small run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.auto.results import auto_result, scores
from tests.auto.rig import planted_task
from tests.cli.conftest import Run
from tests.sae.index.toy_index import WordEncoder
from tests.tiny import tiny_model

from steersman.auto.experiment import experiment_of, read_experiment, runs_of
from steersman.auto.facts import AutoResult, Epoch
from steersman.cli import autosteer_compare, main
from steersman.errors import DataError, EndpointError
from steersman.sae.file import save_sae
from steersman.sae.index.embed import embed_index
from steersman.sae.index.file import save_index

BEHAVIOUR = "be planted"
TOML = f"""
behaviours = ["{BEHAVIOUR}", "be quick"]
seeds = [0, 1]
[optimisers.gradient]
[optimisers.bayes]
trials = 2
"""
Script = Callable[[str, int], AutoResult]


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SAE of the tiny model with its index, and a file of pairs that one of its features wrote."""
    place = tmp_path_factory.mktemp("planted")
    model = tiny_model()
    task = planted_task(model)
    save_sae(task.sae, place / "sae")
    save_index(embed_index(task.index, WordEncoder(), model.tokenizer), place / "sae" / "index")
    items = [*task.contrast.train, *task.contrast.validation]
    lines = [{"prompt": each.prompt, "positive": each.positive, "negative": each.negative} for each in items]
    (place / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


@pytest.fixture(autouse=True)
def _compare_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autosteer_compare, "load_encoder", WordEncoder)
    monkeypatch.setattr(main.app, "registered_commands", [*main.app.registered_commands])
    if not any(each.name == "autosteer-compare" for each in main.app.registered_commands):
        main.app.command("autosteer-compare")(autosteer_compare.autosteer_compare)


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], list[tuple[str, int]]]:
    """Put a script in place of auto-steering; which runs were begun is kept."""

    def put(script: Script) -> list[tuple[str, int]]:
        begun: list[tuple[str, int]] = []

        def run(engine: Any, behaviour: Any, **options: Any) -> AutoResult:
            begun.append((behaviour.description, options["settings"].seed))
            return script(*begun[-1])

        monkeypatch.setattr("steersman.auto.autosteer.autosteer", run)
        return begun

    return put


def result(behaviour: str, seed: int) -> AutoResult:
    ways = {way: scores(0.2, 0.9) for way in ("plain", "prompted", "random")}
    made = auto_result(history=(Epoch(step=0, score=0.1, weights={3: 0.1}), Epoch(step=1, score=0.4, weights={3: 0.2})))

    steered = {**ways, "steered": scores(0.5 + 0.1 * seed, 0.8)}
    return replace(made, evidence=replace(made.evidence, scores=steered))


@pytest.fixture
def arguments(tmp_path: Path, folder: Path, planted: Path) -> tuple[object, ...]:
    config = tmp_path / "experiment.toml"
    config.write_text(TOML)
    return ("autosteer-compare", config, "--out", tmp_path / "out", "--model", folder, "--sae", planted / "sae")


def test_every_combination_is_run_once_and_what_is_done_is_kept(
    run: Run, tuned: Callable[[Script], list[tuple[str, int]]], arguments: tuple[object, ...], tmp_path: Path
) -> None:
    begun = tuned(result)
    first = run(*arguments)
    assert first.code == 0, first.err
    assert len(begun) == 8
    assert "run 8 of 8" in first.err
    for said in ("gradient", "bayes", "(all)", "0.44", "table.md"):
        assert said in first.out, said
    facts = run(*arguments, "--json").facts
    assert len(begun) == 8
    assert (facts["runs"], facts["repeated"], facts["failed"]) == (8, 8, [])
    assert {row["behaviour"] for row in facts["rows"]} == {"(all)", BEHAVIOUR, "be quick"}
    assert all(row["proven"] == row["score"]["n"] for row in facts["rows"])
    assert all(Path(file).stat().st_size > 0 for file in facts["files"].values())
    lines = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert [line["outcome"]["score"] for line in lines] == pytest.approx([0.4, 0.48] * 4)
    assert lines[0]["outcome"]["history"] == [[0, 0.1], [1, 0.4]]
    assert "examples" not in lines[0]["outcome"]["facts"]


def test_an_interrupt_says_what_is_kept_and_the_rest_runs_later(
    run: Run, tuned: Callable[[Script], list[tuple[str, int]]], arguments: tuple[object, ...]
) -> None:
    def until_quick(behaviour: str, seed: int) -> AutoResult:
        if behaviour == "be quick":
            raise KeyboardInterrupt
        return result(behaviour, seed)

    tuned(until_quick)
    stopped = run(*arguments)
    assert (stopped.code, stopped.out) == (130, "")
    assert "4 runs are done and kept" in stopped.err
    begun = tuned(result)
    assert run(*arguments, "--json").facts["repeated"] == 4
    assert {behaviour for behaviour, _ in begun} == {"be quick"}


def test_failed_runs_are_told_counted_and_tried_again(
    run: Run, tuned: Callable[[Script], list[tuple[str, int]]], arguments: tuple[object, ...]
) -> None:
    def moody(behaviour: str, seed: int) -> AutoResult:
        if seed:
            raise DataError("the model does not show it\x1b[2J")
        return result(behaviour, seed)

    tuned(moody)
    outcome = run(*arguments, "--json")
    assert outcome.code == 1
    assert "error: 4 of 8 runs failed, the first with: the model does not show it [2J" in outcome.err
    assert "\x1b" not in outcome.err
    facts = json.loads(outcome.out)
    assert len(facts["failed"]) == 4
    assert {(row["score"]["n"], row["score"]["total"]) for row in facts["rows"] if row["behaviour"] != "(all)"} == {
        (1, 2)
    }
    begun = tuned(result)
    assert run(*arguments).code == 0
    assert {seed for _, seed in begun} == {1}


def test_a_folder_of_another_setup_is_refused(
    run: Run, tuned: Callable[[Script], list[tuple[str, int]]], arguments: tuple[object, ...]
) -> None:
    begun = tuned(result)
    assert run(*arguments).code == 0
    config = arguments[1]
    assert isinstance(config, Path)
    config.write_text(TOML + "[sizes]\ntest = 4\n")
    outcome = run(*arguments)
    assert (outcome.code, outcome.out, len(begun)) == (1, "", 8)
    assert "had another test (16, not 4); choose another folder" in outcome.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("behaviors = ['x']\n" + TOML, "did you mean 'behaviours'"),
        (TOML.replace("optimisers.bayes", "optimisers.baies"), "did you mean 'bayes'"),
        (TOML.replace(f'"{BEHAVIOUR}", "be quick"', ""), "behaviours is empty"),
        ("[optimisers.bayes]", "behaviours must be a list of texts"),
        ("behaviours = [", "is not TOML"),
        (TOML + "[examples]\n'be planned' = 'pirate'\n", "did you mean 'be planted'"),
        (TOML + f"[examples]\n'{BEHAVIOUR}' = 'pirat'\n", "did you mean 'pirate'"),
        (TOML + f"[examples]\n'{BEHAVIOUR}' = 3\n", "examples must be a table of texts"),
        (TOML + "[sizes]\ntests = 4\n", "did you mean 'test'"),
        (TOML + "[sizes]\ntest = 1\n", "test must be at least 2"),
        (TOML.replace("[optimisers.bayes]\ntrials = 2", "[optimisers.textgrad]"), "STEERSMAN_LLM_URL"),
        ("judge_prompts = ['strict']\n" + TOML, "STEERSMAN_LLM_URL"),
    ],
)
def test_experiments_that_cannot_be_run_are_refused_before_the_work(
    run: Run,
    tuned: Callable[[Script], list[tuple[str, int]]],
    arguments: tuple[object, ...],
    tmp_path: Path,
    change: str,
    says: str,
) -> None:
    begun = tuned(result)
    config = arguments[1]
    assert isinstance(config, Path)
    config.write_text(change)
    outcome = run(*arguments)
    assert (outcome.code, outcome.out, begun) == (1, "", [])
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert says in outcome.err
    assert not (tmp_path / "out").exists()


def test_wrong_surroundings_are_refused_before_the_work(
    run: Run, arguments: tuple[object, ...], planted: Path, tmp_path: Path
) -> None:
    nothing = run("autosteer-compare", tmp_path / "none.toml", "--out", tmp_path / "out")
    assert nothing.code == 1
    assert "there is no experiment" in nothing.err
    assert run("autosteer-compare", tmp_path / "experiment.toml").code == 2
    other = run(*arguments[:-1], "no-such-sae")
    assert other.code == 1
    assert "there is no SAE" in other.err


def test_the_example_is_a_small_experiment() -> None:
    experiment = read_experiment(Path(__file__).parents[2] / "examples" / "compare.toml")
    assert [run.name for run in runs_of(experiment)] == ["gradient", "bayes"]
    assert set(experiment.examples) == set(experiment.behaviours)
    assert experiment.settings(seed=3).seed == 3


def test_sizes_reach_auto_steering() -> None:
    made = experiment_of({"behaviours": ["b"], "optimisers": {"bayes": {}}, "sizes": {"test": 5, "choices": 0}})
    assert (made.settings(7).test, made.settings(7).choices, made.settings(7).seed) == (5, 0, 7)


def test_a_run_that_fails_for_want_of_an_endpoint_says_so() -> None:
    made = experiment_of({"behaviours": ["b"], "optimisers": {"textgrad": {}}})
    with pytest.raises(EndpointError, match="STEERSMAN_LLM_URL"):
        runs_of(made)[0].optimiser()


def test_a_small_experiment_runs_from_end_to_end(run: Run, folder: Path, planted: Path, tmp_path: Path) -> None:
    config = tmp_path / "experiment.toml"
    config.write_text(
        f"""
behaviours = ["{BEHAVIOUR}"]
features = [2]
[optimisers.gradient]
steps = 4
validate_every = 2
[optimisers.bayes]
trials = 2
[examples]
"{BEHAVIOUR}" = "{planted / "pairs.jsonl"}"
[sizes]
train = 4
validation = 2
test = 2
choices = 2
"""
    )
    given = ("autosteer-compare", config, "--out", tmp_path / "out", "--model", folder, "--sae", planted / "sae")
    outcome = run(*given, "--json")
    facts = outcome.facts
    assert {row["name"] for row in facts["rows"]} == {"gradient", "bayes"}
    assert all(0 <= row["score"]["mean"] <= 1 for row in facts["rows"])
    assert "stage" not in outcome.out
    lines = [json.loads(line)["outcome"] for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    # The gradient goes by likelihood: its epochs are judged afterwards, so that both have a curve on one scale.
    assert [step for step, _ in lines[0]["history"]] == [0, 2, 4]
    assert [step for step, _ in lines[1]["history"]] == [0, 1]
    assert all(0 <= score <= 1 for line in lines for _, score in line["history"])
    assert all(line["facts"]["scored by"] == ["likelihood", "embedding"] for line in lines)
    assert run(*given, "--json").facts["repeated"] == 2
