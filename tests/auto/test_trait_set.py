"""A trait's name becomes a sentence, the sentence pairs, and the pairs a recipe whose evidence uses prompts of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from pydantic import TypeAdapter
from tests.auto.scripted import Reports, Script
from tests.sae.index.toy_index import WordEncoder

from steersman.auto import trait_set
from steersman.auto.facts import Evidence
from steersman.auto.prompts import split_prompts
from steersman.auto.strength import FACTORS
from steersman.auto.trait_set import FORM, TraitSettings, check_trait, fit_trait, trait_behaviour, trait_pairs
from steersman.auto.writing import asking, write
from steersman.engine.engine import Engine, EngineLimits
from steersman.errors import DataError, EndpointError, ModelError
from steersman.judges.facts import Answered, Verdict
from steersman.models.asking import Messages
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import measure_profile
from steersman.steering.edits import Add
from steersman.steering.recipe_file import from_wire, to_wire
from steersman.steering.traits import load_trait

_FEW = TraitSettings(train=8, validation=2, test=4, layers=(1, 2))


class Arrs:
    """Behaviour: the share of letters that are an A or an R; or what it is told to be."""

    name = "arrs"

    def __init__(self, told: float | None = None) -> None:
        self.told = told

    def judge(self, behaviour: str, items: Sequence[Answered]) -> list[Verdict]:
        return [Verdict(behaviour=self._share(item.answer), coherence=1.0) for item in items]

    def _share(self, answer: str) -> float:
        if self.told is not None and not answer.startswith("arr"):
            return self.told
        return sum(letter in "ar" for letter in answer) / max(len(answer), 1)


def pirate(messages: Messages) -> str:
    """Answers any chat."""
    return f"arr arr {'ra' * (len(messages[-1]['content']) % 5)}"


@pytest.fixture(scope="module")
def engine() -> Engine:
    from tests.tiny import tiny_model

    model = tiny_model()
    return Engine(model, EngineLimits(slots=64), profile=measure_profile(model))


# --- names


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("!!!", "no word"),
        ("42", "no word"),
        ("x", "no word"),
        ("asdfgh", "'asdfgh'"),
        ("zzzzzz", "'zzzzzz'"),
        ("very xqzt", "'xqzt'"),
        ("formal and casual", "exclude each other"),
        ("Cheerful but sad at the same time", "exclude each other"),
        ("polite, impolite", "'polite' and 'impolite'"),
        ("honest but not honest", "exclude each other"),
    ],
)
def test_what_is_no_trait_is_refused(tiny: LanguageModel, name: str, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        trait_behaviour(tiny, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["sarcastic", "child-friendly", "zen", "rhythmic", "news reporter", "Formal and polite", "not honest", "весёлый"],
)
def test_names_of_traits_are_taken(tiny: LanguageModel, name: str) -> None:
    check_trait(tiny, name)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("boastful", FORM.format(trait="boastful")),
        (" very   boastful ", FORM.format(trait="very boastful")),
        ("Talk like a pirate.", "Talk like a pirate."),
        ("be sarcastic", "be sarcastic"),
        ("talk like an old wizard", "talk like an old wizard"),
        ("Tell of someone who was sad once and is now very cheerful again", None),
        ("Cheerful", load_trait("cheerful").description),
    ],
)
def test_a_name_becomes_a_sentence_and_a_sentence_stays(tiny: LanguageModel, said: str, sentence: str | None) -> None:
    assert trait_behaviour(tiny, said).description == (sentence or said)


def test_a_language_model_may_put_a_name_into_a_sentence_or_say_why_not(tiny: LanguageModel) -> None:
    said = Script('{"problem": null, "sentence": "Talk like a goblin."}')
    assert trait_behaviour(tiny, "goblin", said).description == "Talk like a goblin."
    assert said.heard[0][-1]["content"] == "goblin"
    with pytest.raises(DataError, match="nobody knows what that is"):
        trait_behaviour(tiny, "glorp", Script('{"problem": "nobody knows what that is", "sentence": null}'))
    both, neither = ({"problem": word, "sentence": word} for word in ("x", None))
    with pytest.raises(EndpointError, match="one of"):
        trait_behaviour(
            tiny, "goblin", Script(json.dumps(both), json.dumps(neither), '{"problem": 3, "sentence": null}')
        )
    nobody = Script()
    assert trait_behaviour(tiny, "cheerful", nobody).description == load_trait("cheerful").description
    assert nobody.heard == []


# --- pairs


def test_pairs_are_answers_to_training_prompts_alone(engine: Engine) -> None:
    reports = Reports()
    pairs = trait_pairs(engine, "Talk like a pirate.", judge=Arrs(0.0), ask=pirate, report=reports)
    prompts = split_prompts(0, 24, 8, 16)
    asked = [
        side[0]["content"] for pair in pairs for side in (pair.positive, pair.negative) if not isinstance(side, str)
    ]
    assert asked[::2] == asked[1::2]
    assert set(asked) <= set(prompts.train)
    assert not set(asked) & {*prompts.validation, *prompts.test}
    assert all(str(pair.positive[-1]["content"]).startswith("arr") for pair in pairs)  # type: ignore[index]
    own = write(engine, [asking(prompt) for prompt in asked[::2]])
    assert [pair.negative[-1]["content"] for pair in pairs] == own  # type: ignore[index]
    assert reports.of("contrast")
    other = trait_pairs(engine, "Talk like a pirate.", judge=Arrs(0.0), ask=pirate, seed=1)
    assert other != pairs


def test_a_trait_that_no_answer_shows_is_told_so(engine: Engine) -> None:
    with pytest.raises(DataError, match="in 0 of 24 answers even when told to"):
        trait_pairs(engine, "sarcastic", judge=Arrs(0.5))


# --- recipes


def test_a_trait_becomes_a_recipe_with_evidence(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trait_set, "QuickJudge", lambda _: Arrs(0.0))
    monkeypatch.setattr(trait_set, "LocalJudge", lambda *_: Arrs())
    reports = Reports()
    sentence = "Talk like a pirate."
    recipe = fit_trait(engine, sentence, encoder=WordEncoder(), settings=_FEW, ask=pirate, report=reports)
    (edit,) = recipe.edits
    assert isinstance(edit, Add)
    assert (recipe.name, recipe.description, recipe.method) == ("talk-like-a-pirate", sentence, "caa")
    assert recipe.model == engine.model.ref
    # One layer of those that were tried is left, at a length that was tried there, and none scored better.
    tried = recipe.data["strengths"]
    assert isinstance(tried, dict)
    assert set(tried) == {"1", "2"}
    scores = {(layer, float(length)): score for layer, each in tried.items() for length, score in each.items()}  # type: ignore[union-attr]
    assert len(scores) == 2 * (1 + len(FACTORS))
    chosen = scores[str(edit.layer), round(edit.strength, 4)]
    evidence = TypeAdapter(Evidence).validate_python(recipe.evidence, strict=False)
    if evidence.verdict != "no effect":
        assert chosen == max(scores.values())
    assert recipe.data["layers"] == [edit.layer]
    # What is read at each multiplier is what the recipe does.
    shown = recipe.data["multipliers"]
    assert isinstance(shown, dict)
    requests = [asking(str(shown["prompt"]), recipe, strength=float(at), tokens=48) for at in ("-1", "0", "1")]
    assert write(engine, requests) == [shown[at] for at in ("-1", "0", "1")]
    split = split_prompts(0, 8, 2, 4)
    assert shown["prompt"] not in (*split.train, *split.validation, *split.test)
    assert all(each.product.total == 4 for each in evidence.scores.values())
    facts, tensors = to_wire(recipe)
    assert from_wire(json.loads(json.dumps(facts, allow_nan=False)), tensors) == recipe
    assert [each["name"] for each in reports.of("stage")] == ["contrast set", "strength", "proof"]


def test_a_trait_that_no_strength_brings_out_has_no_effect(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trait_set, "QuickJudge", lambda _: Arrs(0.0))
    monkeypatch.setattr(trait_set, "LocalJudge", lambda *_: Arrs(0.4))
    recipe = fit_trait(engine, "Talk like a pirate.", encoder=WordEncoder(), settings=_FEW, ask=pirate)
    assert recipe.evidence is not None
    assert recipe.evidence["verdict"] == "no effect"
    tried = recipe.data["strengths"]
    assert isinstance(tried, dict)
    lengths = [float(length) for length in tried[str(recipe.edits[0].layer)] if float(length)]  # type: ignore[union-attr]
    assert round(recipe.edits[0].strength, 4) == min(lengths)


def test_settings_and_layers_that_make_no_sense_are_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "validation", "test"):
        with pytest.raises(DataError, match=name):
            TraitSettings(**{name: 1})
    monkeypatch.setattr(trait_set, "QuickJudge", lambda _: Arrs(0.0))
    settings = TraitSettings(train=8, validation=2, test=4, layers=(99,))
    with pytest.raises(ModelError, match="99"):
        fit_trait(engine, "Talk like a pirate.", encoder=WordEncoder(), settings=settings, ask=pirate)
