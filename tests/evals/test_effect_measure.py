"""Measuring: an effect is the difference of means, an interrupt keeps what is done, gaps are counted; and fitting to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.evals.effects_rig import (
    D_SAE,
    LAYER,
    SETTINGS,
    index_of,
    made_effects,
    profile_of,
    random_map,
    ref_of,
    toy,
)

from steersman.errors import DataError, RecipeError, RequestError, SaeError
from steersman.evals.effects.fit import fit_effects, noise_ceiling, r_squared_as_stored, split
from steersman.evals.effects.measure import EffectProgress, Meter, measure_effects
from steersman.evals.effects.predict import predicted_effects
from steersman.evals.effects.sampling import Sampler
from steersman.evals.effects.store import Effects, EffectStore
from steersman.evals.effects.vectors import Probes
from steersman.models.language_model import LanguageModel
from steersman.steering.edits import Ablate, Add
from steersman.steering.recipe import Recipe
from steersman.steering.target import Direction
from steersman.steering.vector import Vector

SAE = toy()


def measured(tiny: LanguageModel, folder: Path, vectors: int, **more: object) -> EffectStore:
    given = {"settings": SETTINGS, "profile": profile_of(tiny), **more}
    return measure_effects(tiny, SAE, ref_of(SAE), folder=folder, vectors=vectors, **given)  # type: ignore[arg-type]


def test_an_effect_is_the_difference_of_mean_activations(tiny: LanguageModel) -> None:
    meter = Meter(tiny, SAE, profile_of(tiny), SETTINGS)
    probes, baseline = list(Probes(SAE, 0).first(3)), meter.baseline()
    rows, failed = meter.measure(probes, baseline)
    assert failed == ()
    sampler = Sampler(tiny, LAYER, profile_of(tiny).mean_norms, replace(SETTINGS, temperature=1.0))
    from steersman.evals.effects import measure  # The seeds of samples are its own affair.

    for place, probe in enumerate(probes):
        edit = (probe.vector, float(rows.strengths[place]))
        (written,) = sampler.write([edit], [measure._seed(SETTINGS, probe.number)])
        acts = SAE.encode(written.residuals)
        torch.testing.assert_close(rows.effects[place].float(), acts.mean((0, 1, 2)) - baseline, atol=2e-3, rtol=2e-3)
        per_sample = acts.mean(2)
        variance = sum(float(per_sample[prompt].var(0).sum()) / SETTINGS.samples for prompt in range(2)) / 4
        assert float(rows.noise[place]) == pytest.approx(variance, rel=1e-3)


def test_a_run_goes_on_where_it_was_interrupted(tiny: LanguageModel, tmp_path: Path) -> None:
    def impatient(now: EffectProgress) -> None:
        if 0 < now.done < now.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(tiny, tmp_path / "part", 150, report=impatient)
    done = EffectStore.open(tmp_path / "part").measured
    assert 0 < done < 150
    seen: list[EffectProgress] = []
    whole = measured(tiny, tmp_path / "part", 150, report=seen.append).read()
    assert (seen[0].done, seen[-1].done, seen[-1].total) == (done, 150, 150)
    assert seen[-1].vectors_per_minute > 0
    at_once = measured(tiny, tmp_path / "whole", 150).read()
    assert torch.equal(whole.number, at_once.number)
    assert torch.equal(whole.vectors, at_once.vectors)
    # The scan starts from a hint, so that a strength may come from another pair of neighbours; nearly all do not.
    same = (whole.strengths - at_once.strengths).abs() < 1e-4
    assert float(same.float().mean()) > 0.9
    torch.testing.assert_close(whole.effects[same], at_once.effects[same], atol=2e-2, rtol=2e-2)


def test_vectors_that_break_the_model_are_gaps(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = list(Probes(SAE, 0).first(6))[4].vector
    write = Sampler.write

    def failing(self: Sampler, edits: list[tuple[Vector, float] | None], seeds: list[int], **more: int) -> object:
        if any(edit and edit[0] == broken for edit in edits):
            raise RequestError("not a number")
        return write(self, edits, seeds, **more)

    monkeypatch.setattr(Sampler, "write", failing)
    store = measured(tiny, tmp_path, 6)
    assert (store.measured, store.index.failed) == (5, (4,))
    assert store.read().number.tolist() == [0, 1, 2, 3, 5]
    assert measured(tiny, tmp_path, 6).done == set(range(6))


def test_a_folder_of_something_else_is_refused(tiny: LanguageModel, tmp_path: Path) -> None:
    fresh = index_of(tiny, SAE)
    EffectStore.begin(tmp_path, fresh).save_baseline(torch.zeros(D_SAE))
    with pytest.raises(SaeError, match="effects of another SAE"):
        EffectStore.begin(tmp_path, replace(fresh, sae=ref_of(toy(9))))
    with pytest.raises(DataError, match="another 'rise'"):
        EffectStore.begin(tmp_path, replace(fresh, settings=replace(SETTINGS, rise=9.0)))
    with pytest.raises(DataError, match="another model"):
        EffectStore.begin(tmp_path, replace(fresh, model=replace(tiny.ref, weights_hash="0" * 64)))
    with pytest.raises(DataError, match="no measured vectors yet"):
        EffectStore.open(tmp_path).read()
    with pytest.raises(DataError, match="holds no effects"):
        EffectStore.open(tmp_path / "elsewhere")


def test_damaged_folders_are_noticed(tiny: LanguageModel, tmp_path: Path) -> None:
    store = EffectStore(tmp_path, index_of(tiny, SAE)).appended(made_effects(random_map(), 4))
    (tmp_path / store.index.shards[0].file).write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot read effects"):
        store.read()
    with pytest.raises(DataError, match=r"baseline\.safetensors"):
        store.baseline()
    (tmp_path / "effects.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        EffectStore.open(tmp_path)


def filled(tiny: LanguageModel, folder: Path, n: int, noise: float) -> EffectStore:
    store = EffectStore(folder, index_of(tiny, SAE))
    for start in range(0, n, 100):
        store = store.appended(made_effects(random_map(), 100, noise=noise, start=start))
    return store


def test_the_fit_reports_on_vectors_that_it_has_not_seen(tiny: LanguageModel, tmp_path: Path) -> None:
    store = filled(tiny, tmp_path, 400, noise=0.3)
    found, facts = fit_effects(store, compare_sgd=True)
    assert sum(facts.vectors.values()) == 360
    assert facts.r_squared.n == 40
    assert facts.r_squared.mean is not None
    assert facts.noise_ceiling is not None
    assert 0.8 < facts.r_squared.mean < facts.noise_ceiling + 0.02
    assert facts.sae == ref_of(SAE)
    assert (facts.data["measured"], facts.data["not_reached"]) == (400, 0)
    assert isinstance(facts.data["sgd_r_squared"], float)
    torch.testing.assert_close(found.weights, random_map().weights, atol=0.5, rtol=0.5)
    kept = r_squared_as_stored(fit_effects(store), store, "int8").mean
    assert kept == pytest.approx(facts.r_squared.mean, abs=1e-3)


def test_the_parts_of_a_split_share_nothing() -> None:
    parts = split(made_effects(random_map(), 50), 0.2, seed=1)
    assert sorted(torch.cat(parts).tolist()) == list(range(50))
    assert [len(part) for part in parts] == [30, 10, 10]
    with pytest.raises(DataError, match="too few"):
        split(made_effects(random_map(), 10), 0.2, seed=1)
    with pytest.raises(DataError, match=r"held out 0\.5"):
        split(made_effects(random_map(), 50), 0.5, seed=1)


def test_noise_alone_leaves_nothing_to_explain() -> None:
    flat = only_noise()
    ceiling = noise_ceiling(flat)
    assert ceiling is not None
    assert abs(ceiling) < 0.1


def only_noise() -> Effects:
    still = type(random_map())(torch.zeros(32, D_SAE), torch.ones(D_SAE))
    return made_effects(still, 300, noise=0.5)


def test_predictions_add_up_the_edits_of_a_recipe(tiny: LanguageModel, tmp_path: Path) -> None:
    stored = fit_effects(filled(tiny, tmp_path, 100, noise=0.0))
    one, other = (probe.vector for probe in Probes(SAE, 0).first(2))
    edits = (Add(layer=LAYER, vector=one, strength=0.3), Add(layer=LAYER, vector=7.0 * other, strength=-0.1))
    found = predicted_effects(Recipe(name="both", edits=edits), stored)
    total = 0.3 * one.tensor - 0.1 * other.tensor
    torch.testing.assert_close(found.effects, stored.effect_map.predict(total), atol=1e-5, rtol=1e-5)
    assert found.strength == pytest.approx(float(total.norm()), rel=1e-5)
    for recipe, said in (
        (Recipe(name="low", edits=(Add(layer=1, vector=one),)), "add at layer 1"),
        (Recipe(name="cut", edits=(Ablate(layer=LAYER, target=Direction(vector=one)),)), "ablate at layer 2"),
        (Recipe(name="mixed", edits=(edits[0], Add(layer=LAYER, vector=one, unit="raw"))), "mixes raw"),
        (Recipe(name="none", edits=(edits[0], Add(layer=LAYER, vector=one, strength=-0.3))), "cancel out"),
    ):
        with pytest.raises(RecipeError, match=said):
            predicted_effects(recipe, stored)
