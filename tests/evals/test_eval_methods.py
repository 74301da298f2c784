"""Methods at unit strength: each against what it is made of, controls of the same length; failures are gaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.auto.rig import PLANTED
from tests.evals.eval_rig import context_of
from tests.sae.index.toy_index import WordEncoder

from steersman.auto.facts import ContrastSet
from steersman.auto.prompts import Prompts
from steersman.errors import DataError
from steersman.evals import fitting
from steersman.evals.behaviours import NEUTRAL_PROMPT
from steersman.evals.context import Context, prompt_sets
from steersman.evals.facts import EvalSettings, Fitted
from steersman.evals.fitting import Pairs, RandomVector, WrongSign, unit
from steersman.evals.methods import METHODS, fit_all, methods_of
from steersman.evals.store import RunFolder
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import read_residuals
from steersman.sae.index.embed import embed_index
from steersman.steering.edits import Add
from steersman.steering.methods import METHODS as FITS


def _add(fitted: Fitted) -> Add:
    assert fitted.recipe is not None, fitted.error
    [edit] = fitted.recipe.edits
    assert isinstance(edit, Add)
    return edit


def test_every_name_makes_a_method_of_that_name() -> None:
    assert [made().name for made in METHODS.values()] == list(METHODS)


def test_controls_are_always_there_and_those_made_from_others_come_last() -> None:
    names = [method.name for method in methods_of(["random", "caa", "caa"])]
    assert names == ["caa", "prompt", "plain", "random"]
    with pytest.raises(DataError, match="did you mean 'optimised'"):
        methods_of(["optimized"])
    with pytest.raises(DataError, match="no method that steers"):
        methods_of(["prompt", "random"])


@pytest.mark.parametrize("name", ["caa", "lat"])
def test_pair_methods_are_their_own_vectors_at_unit_strength(name: str, tiny: LanguageModel) -> None:
    context, _ = context_of(tiny)
    engine = context.engine
    own = FITS[name](tiny, context.behaviour.pairs, profile=engine.profile, layers=[context.layer], name=name)
    edit = _add(Pairs(name).fit(context))
    assert edit.strength == pytest.approx(1.0)
    assert edit.vector == own.edits[0].vector  # type: ignore[union-attr]


def test_the_best_feature_is_the_planted_one(tiny: LanguageModel) -> None:
    context, _ = context_of(tiny)
    fitted = METHODS["sae"]().fit(context)
    assert [feature.id for feature in _add(fitted).features] == [PLANTED]
    assert f"feature {PLANTED}" in fitted.note


def test_topic_alignment_raises_latents_that_fire_on_the_examples(tiny: LanguageModel) -> None:
    context, _ = context_of(tiny)
    assert context.sae is not None
    fitted = METHODS["topic"]().fit(context)
    edit = _add(fitted)
    raised = [feature.id for feature in edit.features]
    rows = context.sae.W_dec[raised].sum(0)
    torch.testing.assert_close(edit.vector.tensor, rows)
    assert edit.strength == pytest.approx(1.0)
    assert f"{raised[0]} (" in fitted.note
    # Half of the positives at least, those being in the reference; the others cannot all be what it fires on.
    texts = [item.positive for item in context.behaviour.items]
    residuals = read_residuals(tiny, [tiny.tokenizer(text)["input_ids"] for text in texts], [context.layer])
    fires = [(context.sae.encode(each[context.layer].float()) > 0).any(0) for each in residuals]
    assert any(sum(int(row[latent]) for row in fires) >= len(texts) / 2 for latent in raised)


def test_controls_are_as_long_as_what_they_control(tiny: LanguageModel) -> None:
    context, _ = context_of(tiny)
    caa = Pairs("caa").fit(context)
    after = replace(context, fitted=(Fitted(name="prompt", system="x"), caa))
    random, wrong = RandomVector().fit(after), WrongSign().fit(after)
    assert _add(random).strength == pytest.approx(_add(caa).strength)
    assert _add(random).layer == _add(caa).layer
    cosine = torch.cosine_similarity(_add(random).vector.tensor, _add(caa).vector.tensor, dim=0)
    assert abs(float(cosine)) < 0.6
    assert _add(wrong).vector == _add(caa).vector
    assert _add(wrong).strength == -_add(caa).strength
    assert RandomVector().fit(replace(after, seed=1)).recipe != random.recipe
    with pytest.raises(DataError, match="none was fitted"):
        RandomVector().fit(context)


def test_unit_leaves_ratios_and_refuses_raw_vectors(tiny: LanguageModel) -> None:
    context, _ = context_of(tiny)
    recipe = Pairs("caa").fit(context).recipe
    assert recipe is not None
    both = unit(2.0 * recipe + 0.5 * recipe)
    assert [edit.strength for edit in both.edits] == pytest.approx([1.0, 0.25])
    raw = replace(recipe, edits=(replace(_add(Fitted(name="x", recipe=recipe)), unit="raw"),))
    with pytest.raises(DataError, match="raw"):
        unit(raw)


def test_what_cannot_be_fitted_is_a_gap_and_what_was_fitted_is_kept(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = context_of(tiny)
    bare = replace(context, sae=None, index=None, without_sae="there is none")
    methods = methods_of(["caa", "sae", "sae-ts", "wrong-sign"])
    found = {each.name: each for each in fit_all(methods, bare, RunFolder(tmp_path))}
    assert (found["sae"].error, found["sae-ts"].error) == ("there is none",) * 2
    assert found["caa"].error is None
    assert not found["caa"].control
    assert found["wrong-sign"].control
    assert found["prompt"].system == "Be planted. Always answer like this, whatever you are asked."
    monkeypatch.setattr(fitting, "FITS", {})  # Whatever fits again now, fails.
    again = {each.name: each for each in fit_all(methods, bare, RunFolder(tmp_path))}
    assert again["caa"] == found["caa"]
    with pytest.raises(KeyError):
        fit_all(methods, replace(bare, seed=1), RunFolder(tmp_path))


def test_a_method_more_costs_only_that_method_and_controls_follow_what_they_are_made_from(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = context_of(tiny)
    kept = RunFolder(tmp_path)
    bare = replace(context, sae=None, index=None, without_sae="there is none")
    first = {each.name: each for each in fit_all(methods_of(["lat", "wrong-sign"]), bare, kept)}
    only_caa = {"caa": FITS["caa"]}
    monkeypatch.setattr(fitting, "FITS", only_caa)  # Fitting LAT again would fail.
    found = {each.name: each for each in fit_all(methods_of(["caa", "lat", "wrong-sign"]), bare, kept)}
    assert found["lat"] == first["lat"]
    assert (first["wrong-sign"].note, found["wrong-sign"].note) == ("minus lat", "minus caa")
    assert _add(found["wrong-sign"]).vector == _add(found["caa"]).vector


def test_sae_ts_says_that_it_needs_an_effect_map(tiny: LanguageModel) -> None:
    context, _ = context_of(tiny)
    with pytest.raises(DataError, match="needs an effect map"):
        METHODS["sae-ts"]().fit(context)


def test_prompts_to_tune_on_and_to_evaluate_on_share_none(tiny: LanguageModel) -> None:
    context: Context = context_of(tiny)[0]
    settings = EvalSettings(prompts=20, tuning=24, validation=8, seed=5)
    sets = prompt_sets(settings, context.behaviour)
    assert (len(sets.test), len(sets.tuning), len(sets.validation)) == (20, 24, 8)
    assert len({*sets.test, *sets.tuning, *sets.validation}) == 52
    used = [item.prompt for item in context.behaviour.items]
    with pytest.raises(DataError, match="there are 3 prompts that no example uses"):
        prompt_sets(
            EvalSettings(prompts=4), context.behaviour, [*used, "One more", "Two more", "Three more", "Three more!"]
        )


def test_another_effect_map_fits_sae_ts_again_and_nothing_else(tiny: LanguageModel, tmp_path: Path) -> None:
    context, _ = context_of(tiny)
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    first, second = replace(context, effects=one), replace(context, effects=other)
    assert first.identity == second.identity == context.identity
    assert first.effects_sha256 != second.effects_sha256
    assert context.effects_sha256 is None


def test_auto_keeps_answers_to_prompts_and_writes_its_own_where_there_are_only_texts(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = context_of(tiny)
    assert context.index is not None
    context = replace(context, index=embed_index(context.index, WordEncoder(), tiny.tokenizer))
    assert "examples: planted" in fitting.Auto().fit(context).note
    items = tuple(replace(item, prompt=NEUTRAL_PROMPT) for item in context.behaviour.items)
    texts = replace(context, behaviour=replace(context.behaviour, items=items))
    asked: list[Prompts] = []

    def written(_engine: object, _wanted: object, prompts: Prompts, *_: object) -> ContrastSet:
        asked.append(prompts)
        return replace(context.contrast, source="own answers")

    monkeypatch.setattr(fitting, "written_examples", written)
    assert "examples: own answers" in fitting.Auto().fit(texts).note
    [prompts] = asked
    assert (*prompts.train, *prompts.validation) == context.prompts
    assert not set(prompts.train) & set(prompts.validation)
    assert "examples: planted" in fitting.Auto(writes=False).fit(texts).note

    def not_shown(*_: object) -> ContrastSet:
        raise DataError("the model does not show it")

    monkeypatch.setattr(fitting, "written_examples", not_shown)
    assert "examples: planted" in fitting.Auto().fit(texts).note
