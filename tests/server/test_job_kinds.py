"""What the kinds of jobs come to, on the tiny model: what is kept, what is told, and that they go on where they stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue
from tests.engine.rig import make_engine

from steersman.auto.facts import AutoResult
from steersman.engine.engine import Engine
from steersman.errors import Conflict, DataError
from steersman.evals.facts import Evaluation
from steersman.models.language_model import LanguageModel
from steersman.server.job_kinds import KINDS, autosteering, evaluating, fitting
from steersman.server.job_kinds.desk import Desk, Done, Stopped
from steersman.steering.methods import caa, lat
from steersman.steering.personas import enough_openings, fit_trait, persona_pairs
from steersman.steering.recipe import Recipe
from steersman.store.facts import JobRecord

DIMENSIONS: dict[str, dict[str, list[str]]] = {
    "cheerful": {"positive_examples": ["cheerful", "sunny"], "negative_examples": ["gloomy", "bitter"]},
    "brave": {"positive_examples": ["brave"], "negative_examples": ["timid"]},
}
PAIRS = [
    {"prompt": f"What is {word}?", "positive": f"Ahoy, {word}!", "negative": f"It is {word}."}
    for word in ("rain", "snow", "wind", "hail", "fog", "dew", "ice", "sun")
]


class Told:
    """Keeps events; stops the job at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.stop_at = stop_at

    def __call__(self, kind: str, data: Mapping[str, object], /) -> None:
        self.events.append((kind, dict(data)))
        if self.stop_at is not None and len(self.events) >= self.stop_at:
            raise Stopped


def job(kind: str, /, **request: JsonValue) -> JobRecord:
    return JobRecord(
        id="job_0123456789abcdef",
        owner="ann",
        kind=kind,
        state="running",
        request=request,
        result=None,
        error=None,
        attempts=1,
        created_at=datetime.now(UTC),
        started_at=None,
        ended_at=None,
    )


@pytest.fixture
def engine(tiny: LanguageModel) -> Engine:
    return make_engine(tiny)


def run(engine: Engine, folder: Path, record: JobRecord, told: Told | None = None, **more: Any) -> Done:
    return KINDS[record.kind].run(record, Desk(engine, folder, told or Told(), **more))


def set_job(engine: Engine, **more: JsonValue) -> JobRecord:
    request: dict[str, Any] = {
        "set": "moods-01234567",
        "model": engine.model.ref.weights_hash,
        "dimensions": DIMENSIONS,
        "prompts": ["Well,", "If you ask me,"],
        "method": "lat",
        "layers": None,
    }
    return job("fit-set", **{**request, **more})


def test_a_set_has_the_vector_of_every_trait(engine: Engine, tmp_path: Path) -> None:
    told = Told()
    done = run(engine, tmp_path / "job", set_job(engine), told)
    assert list(done.vectors) == list(DIMENSIONS)
    for trait, sides in DIMENSIONS.items():
        openings = enough_openings(["Well,", "If you ask me,"])
        pairs = persona_pairs(sides["positive_examples"], sides["negative_examples"], openings)
        wanted = fit_trait(engine.model, pairs, profile=engine.profile, name=trait)
        assert done.vectors[trait].edits == wanted.edits
    assert not done.recipes
    assert [event["done"] for _, event in told.events] == [0, 1, 2]


def test_a_set_goes_on_behind_the_last_trait(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(engine, tmp_path / "whole", set_job(engine))
    with pytest.raises(Stopped):
        run(engine, tmp_path / "job", set_job(engine), Told(stop_at=2))
    fitted: list[str] = []

    def fit(*args: Any, **kwargs: Any) -> Recipe:
        fitted.append(kwargs["name"])
        return fit_trait(*args, **kwargs)

    monkeypatch.setattr("steersman.server.job_kinds.fit_set.fit_trait", fit)
    done = run(engine, tmp_path / "job", set_job(engine))
    assert fitted == ["brave"]
    assert {trait: recipe.edits for trait, recipe in done.vectors.items()} == {
        trait: recipe.edits for trait, recipe in whole.vectors.items()
    }


def test_what_is_damaged_is_fitted_again(engine: Engine, tmp_path: Path) -> None:
    whole = run(engine, tmp_path, set_job(engine))
    (tmp_path / "trait-1.json").write_text("{")
    (tmp_path / "trait-2.safetensors").write_bytes(b"no")
    again = run(engine, tmp_path, set_job(engine))
    assert [recipe.edits for recipe in again.vectors.values()] == [recipe.edits for recipe in whole.vectors.values()]


def test_a_set_for_another_model_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="another model"):
        run(engine, tmp_path, set_job(engine, model="0" * 64))


@pytest.mark.parametrize(("method", "fit"), [(None, caa.fit), ("caa", caa.fit), ("lat", lat.fit)])
def test_a_recipe_from_pairs_is_what_the_method_fits(engine: Engine, tmp_path: Path, method: Any, fit: Any) -> None:
    done = run(engine, tmp_path, job("fit", kind="fit", name="ahoy", pairs=PAIRS, method=method, layers=[1, 2]))
    pairs = fitting.pairs_of(fitting.FitBody.model_validate(
        {"kind": "fit", "name": "x", "pairs": PAIRS}).pairs or []
    )  # fmt: skip
    wanted = fit(engine.model, pairs, profile=engine.profile, layers=[1, 2], name="ahoy")
    assert done.recipes == {"ahoy": wanted}
    assert done.result["name"] == "ahoy"


def test_a_recipe_is_scaled_named_and_described(engine: Engine, tmp_path: Path) -> None:
    plain, double = (
        run(engine, tmp_path, job("fit", kind="fit", name="a", contrast_set="pirate", strength=s, description="Ahoy"))
        for s in (1.0, 2.0)
    )
    assert double.recipes["a"].edits == (2.0 * plain.recipes["a"]).edits
    assert plain.recipes["a"].description == "Ahoy"


def test_a_recipe_from_personas_is_a_set_of_one(engine: Engine, tmp_path: Path) -> None:
    personas: Any = {**DIMENSIONS["cheerful"], "prompts": ["Well,", "If you ask me,"]}
    done = run(engine, tmp_path / "a", job("fit", kind="fit", name="cheerful", personas=personas))
    assert done.recipes["cheerful"].edits == run(engine, tmp_path / "b", set_job(engine)).vectors["cheerful"].edits


def test_bad_pairs_are_an_error_of_ours(engine: Engine, tmp_path: Path) -> None:
    same: Any = [{"positive": "a", "negative": "a"}] * 2
    with pytest.raises(DataError):
        run(engine, tmp_path, job("fit", kind="fit", name="a", pairs=same))


def test_auto_steering_is_told_as_it_happens_and_its_recipe_kept(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.auto.results import auto_result

    seen: dict[str, Any] = {}

    def autosteer(*args: Any, report: Any, folder: Path, **kwargs: Any) -> AutoResult:
        seen.update(kwargs, folder=folder)
        report("step", {"step": 0, "score": 0.5, "weights": {7: 1.0}})
        return auto_result()

    monkeypatch.setattr(autosteering, "autosteer", autosteer)
    told = Told()
    done = run(
        engine, tmp_path, job("autosteer", kind="autosteer", behaviour="Be kind.", name="kind", features=3), told
    )
    assert told.events == [("step", {"step": 0, "score": 0.5, "weights": {7: 1.0}})]
    assert seen["folder"] == tmp_path
    assert seen["optimiser"].features == 3
    assert dataclasses.replace(auto_result().recipe, name="kind") == done.recipes["kind"]
    result: Any = done.result
    assert result["recipe"] == "kind"
    assert len(result["history"]) == len(auto_result().history)
    assert result["verdict"] == auto_result().evidence.verdict


@pytest.mark.parametrize("more", [{"judge": "llm"}, {"optimiser": "textgrad"}, {"expand": True}])
def test_without_a_language_model_nothing_that_needs_one_begins(
    engine: Engine, tmp_path: Path, more: dict[str, Any]
) -> None:
    with pytest.raises(Conflict, match="no language model"):
        run(engine, tmp_path, job("autosteer", kind="autosteer", behaviour="Be kind.", **more))


def test_an_evaluation_tells_its_progress_and_gives_its_facts(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def evaluate(*args: Any, progress: Any, **kwargs: Any) -> Evaluation:
        seen.update(kwargs, behaviour=args[1])
        for done in range(100):
            progress("answers", done + 1, 100, "")
        return _evaluation()

    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    monkeypatch.setattr(evaluating, "load_encoder", lambda: None)
    told = Told()
    request: Any = {
        "kind": "evaluate",
        "behaviour": "pirate",
        "methods": ["caa"],
        "strengths": [0.1, 0.2],
        "prompts": 8,
    }
    done = run(engine, tmp_path, job("evaluate", **request), told)
    counts = [event["done"] for _, event in told.events]
    assert counts[0] == 1
    assert counts[-1] == 100
    assert len(counts) < 20
    assert seen["behaviour"].name == "pirate"
    assert seen["methods"] == ("caa",)
    assert seen["settings"].strengths == (0.1, 0.2)
    assert done.result["behaviour"] == "pirate"
    assert "samples" not in done.result


def test_a_behaviour_is_never_looked_for_in_files(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "secret.json"
    file.write_text('{"name": "a", "positive": ["a", "b"], "negative": ["c", "d"], "score_criterion": "x"}')
    for name in (str(file), "../secret.json", "/etc/passwd"):
        with pytest.raises(DataError, match="no behaviour"):
            run(engine, tmp_path, job("evaluate", kind="evaluate", behaviour=name))


def _evaluation() -> Evaluation:
    from steersman.evals.facts import EvalSettings

    return Evaluation(
        behaviour="pirate",
        description="Be a pirate.",
        criterion="It is a pirate's.",
        examples="2 pairs",
        model="tiny",
        sae=None,
        layer=1,
        judges=("letters",),
        prompts=("a", "b", "c", "d"),
        halves=((0, 1), (2, 3)),
        methods=(),
        battles=(),
        samples=(),
        settings=EvalSettings(),
        seconds=float("nan"),
    )
