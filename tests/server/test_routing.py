"""Routes are chosen as by hand: cosines to examples, peaks of features, thresholds that part kinds; bad tables are explained."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.sae.index.toy_index import WordEncoder, toy_sae_for
from tests.tiny import tiny_model

from steersman.auto.prompts import general_prompts
from steersman.errors import DataError, RequestError, SaeError
from steersman.models.language_model import LanguageModel, chat
from steersman.models.residuals import read_residuals
from steersman.server.route_table import Rule, read_table
from steersman.server.routing import MOST_TOKENS, Router, users_words

KITTENS = ("small kittens play", "small puppies play with kittens", "puppies and small kittens play")
SHIPS = ("ships at anchor", "anchor of old ships", "old ships at anchor")
TABLE = """
choose = "best"

[[route]]
recipe = "child-friendly"
examples = ["small kittens play", "small puppies play with kittens", "puppies and small kittens play"]
threshold = 0.4

[[route]]
name = "sea"
recipe = "pirate"
strength = -0.5
examples = ["ships at anchor"]
threshold = 0.3
match = "nearest"

[[route]]
name = "by feature"
recipe = "formal"
feature = 3
above = 1.5
"""


def by_words(*rules: Rule, **settings: Any) -> Router:
    return Router(rules, encoder=WordEncoder, **settings)


def kittens(**facts: Any) -> Rule:
    return Rule(**{"name": "kittens", "recipe": "child-friendly", "examples": KITTENS, **facts})


def ships(**facts: Any) -> Rule:
    return Rule(**{"name": "ships", "recipe": "pirate", "examples": SHIPS, **facts})


# --- by example


def test_the_route_with_the_likest_example_is_taken() -> None:
    router = by_words(kittens(threshold=0.4), ships(threshold=0.4, strength=0.7))
    found = router.route("tell me of old ships")
    assert found is not None
    assert (found.name, found.recipe, found.strength) == ("ships", "pirate", 0.7)
    assert found.score > found.threshold == 0.4
    assert router.route("quantum chromodynamics") is None


@pytest.mark.parametrize("match", ["nearest", "centroid"])
def test_scores_are_cosines(match: str) -> None:
    encoder, prompt = WordEncoder(), "puppies and old ships"
    router = by_words(kittens(threshold=0.4, match=match))
    examples, asked = encoder.encode(KITTENS), encoder.encode([prompt])[0]
    cosine = (examples @ asked).max() if match == "nearest" else F.cosine_similarity(examples.mean(0), asked, dim=0)
    score, threshold = router.scores(prompt)["kittens"]
    assert score == pytest.approx(float(cosine), abs=1e-5)
    assert threshold == 0.4


def test_first_takes_the_order_and_best_the_margin() -> None:
    weak, strong = kittens(threshold=-0.9), ships(threshold=0.2)
    prompt = "old ships at anchor"
    first, best = (by_words(weak, strong, choose=each).route(prompt) for each in ("first", "best"))
    assert first is not None
    assert best is not None
    assert (first.name, best.name) == ("kittens", "ships")


@pytest.mark.parametrize("match", ["nearest", "centroid"])
def test_a_chosen_threshold_parts_the_examples_from_other_prompts(match: str) -> None:
    router = by_words(kittens(match=match), ships(match=match))
    cuts = router.warm()
    assert set(cuts) == {"kittens", "ships"}
    assert all(cut.f1 > 0.7 for cut in cuts.values())
    assert all(-1 < cut.threshold < 0.99 for cut in cuts.values())  # Not that each is its own nearest example.
    routed = [router.route(prompt) for prompt in general_prompts()]
    assert sum(route is not None for route in routed) <= 2
    held_out = router.route("small puppies and kittens play")
    assert held_out is not None
    assert held_out.name == "kittens"


def test_a_route_that_is_no_better_than_always_is_refused_unless_it_has_a_threshold() -> None:
    by_words(kittens(), ships()).refuse_useless()
    anything = general_prompts()[::9]  # Alike in nothing that the others are not.
    with pytest.raises(DataError, match=r"route 'anything': .* \(F1 0\.[0-4]"):
        by_words(ships(), kittens(name="anything", examples=anything)).refuse_useless()
    by_words(ships(), kittens(name="anything", examples=anything, threshold=0.4)).refuse_useless()


def test_a_shipped_prompt_may_be_an_example() -> None:
    mine = general_prompts()[:4]
    router = by_words(Rule(name="mine", recipe="formal", examples=mine, threshold=None))
    assert router.warm()["mine"].threshold < 0.999


def test_repeated_examples_count_once() -> None:
    once, twice = (
        by_words(kittens(examples=examples)).warm() for examples in (KITTENS, (*KITTENS, "Small kittens play!"))
    )
    assert once == twice


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_a_prompt_without_a_word_has_no_route(prompt: str) -> None:
    router = by_words(kittens(threshold=-1.0))
    assert router.route(prompt) is None
    assert router.scores(prompt) == {"kittens": (0.0, -1.0)}


@pytest.mark.parametrize("prompt", ["?!", "☠", "x" * 100_000, "old ships " * 20_000])
def test_any_other_prompt_is_decided(prompt: str) -> None:
    found = by_words(kittens(threshold=-1.0)).route(prompt)
    assert found is None or found.name == "kittens"


def test_examples_that_are_hard_to_tell_from_other_prompts_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    vague = Rule(name="vague", recipe="formal", examples=(*general_prompts()[:2], "completely else"))
    with caplog.at_level(logging.WARNING, logger="steersman"):
        by_words(kittens(), vague).warm()
    assert "'vague'" in caplog.text
    assert "'kittens'" not in caplog.text


# --- by feature


@pytest.mark.parametrize("prompt", ["Ahoy there, matey", "x", "zwei Wörter", " spaced out ", "0", "1"])
@pytest.mark.parametrize("is_chat", [True, False])
def test_a_peak_is_the_largest_activation_on_the_users_words(prompt: str, is_chat: bool) -> None:
    model = tiny_model()
    if not is_chat:
        model.tokenizer.chat_template = None
    sae = toy_sae_for(model)
    ids = model.encode(chat(prompt) if is_chat else prompt)
    rules = [Rule(name=str(n), recipe="r", feature=n, above=0.0) for n in range(sae.config.d_sae)]
    scores = Router(rules, model=model, sae=lambda: sae).scores(prompt)
    alone = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = next(at for at in range(len(ids)) if ids[at : at + len(alone)] == alone and (at or not is_chat))
    own = slice(max(start, 1), start + len(alone))
    whole = read_residuals(model, [ids], [sae.config.layer], skip_first=False)[0][sae.config.layer]
    expected = sae.encode(whole)[own].amax(0) if own.stop > own.start else torch.zeros(sae.config.d_sae)
    for n, value in enumerate(expected.tolist()):
        assert scores[str(n)] == (pytest.approx(value, rel=1e-3, abs=1e-3), 0.0)


def test_users_words_are_what_the_user_says(tiny: LanguageModel) -> None:
    for text in ("How are you?", "0", "01", "10", "ünïcødé ☠", "two\nlines"):
        ids, start, stop = users_words(tiny, text)
        assert tiny.tokenizer.decode(ids[start:stop]) == text
        assert start > 0


def test_a_long_prompt_is_read_so_far_and_no_further(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    router = Router([Rule(name="a", recipe="r", feature=3, above=0.0)], model=tiny, sae=lambda: sae)
    long = "word " * 2 * MOST_TOKENS
    assert router.scores(long)["a"] == router.scores(long + "and more")["a"]


def test_features_and_examples_stand_in_one_table(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    free = Router([Rule(name="f", recipe="r", feature=3, above=0.0)], model=tiny, sae=lambda: sae)
    peak, _ = free.scores("old ships at anchor")["f"]
    rule = Rule(name="f", recipe="formal", feature=3, above=max(peak - 0.1, 0.0))
    router = by_words(ships(threshold=0.95), rule, model=tiny, sae=lambda: sae)
    found = router.route("old ships at anchor")
    assert found is not None
    assert found.name == "ships"
    assert set(router.scores("old ships at anchor")) == {"ships", "f"}
    if peak > 0:
        other = Router([rule], model=tiny, sae=lambda: sae).route("old ships at anchor")
        assert other is not None
        assert "feature 3" in other.why


def test_features_need_a_model_and_an_sae_of_it(tiny: LanguageModel) -> None:
    rule = Rule(name="f", recipe="r", feature=60, above=0.0)
    with pytest.raises(DataError, match="need the model"):
        Router([rule])
    router = Router([rule], model=tiny, sae=lambda: toy_sae_for(tiny))
    with pytest.raises(SaeError, match="feature 60 does not exist"):
        router.warm()
    other = tiny_model(seed=7)
    with pytest.raises(SaeError):
        Router([rule], model=tiny, sae=lambda: toy_sae_for(other)).warm()


# --- cost


def test_what_is_heavy_is_loaded_once_and_late_whoever_asks() -> None:
    loaded: list[WordEncoder] = []

    def load() -> WordEncoder:
        loaded.append(WordEncoder())
        return loaded[-1]

    router = Router([kittens(), ships()], encoder=load)
    assert loaded == []
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(router.route("old ships at anchor"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1
    assert {route.name for route in found} == {"ships"}
    before = len(loaded[0].asked)
    router.route("one more prompt")
    assert loaded[0].asked[before:] == ["one more prompt"]


def test_routes_by_feature_alone_load_no_encoder(tiny: LanguageModel) -> None:
    def never() -> WordEncoder:
        raise AssertionError

    router = Router(
        [Rule(name="f", recipe="r", feature=3, above=0.0)], model=tiny, sae=lambda: toy_sae_for(tiny), encoder=never
    )
    router.route("Ahoy")


def test_a_decision_is_plain_json() -> None:
    found = by_words(ships(threshold=0.4, match="nearest")).route("old ships at anchor")
    assert found is not None
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(told) == {"name", "recipe", "strength", "score", "threshold", "why", "ms"}
    assert told["ms"] >= 0
    assert "example 3" in told["why"]


# --- tables


def table(folder: Path, text: str) -> Path:
    path = folder / "routes.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_is_read_as_it_stands(tmp_path: Path, tiny: LanguageModel) -> None:
    found = read_table(table(tmp_path, TABLE))
    assert found.choose == "best"
    assert found.rules == (
        Rule(name="child-friendly", recipe="child-friendly", examples=KITTENS, threshold=0.4),
        Rule(name="sea", recipe="pirate", strength=-0.5, examples=SHIPS[:1], threshold=0.3, match="nearest"),
        Rule(name="by feature", recipe="formal", feature=3, above=1.5),
    )
    named: list[str] = []

    def encoder(name: str) -> WordEncoder:
        named.append(name)
        return WordEncoder()

    router = Router.from_file(tmp_path / "routes.toml", model=tiny, encoder=encoder, sae=lambda _: toy_sae_for(tiny))
    assert [rule.recipe for rule in router.rules] == ["child-friendly", "pirate", "formal"]
    assert router.route("ships at anchor") is not None
    assert named == ["default"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no routes"),
        ("[[route", "no valid TOML"),
        ('choose = "fist"', "'first'"),
        ('chose = "first"', "did you mean 'choose'"),
        ("route = 3", "'route' must be a list"),
        ("route = [3]", r"write \[\[route\]\]"),
        ("[[route]]\n", "route 1 misses 'recipe'"),
        ('[[route]]\nrecipe = "a"\nexample = ["x"]', r"route 1 \(a\): unknown key 'example'; did you mean 'examples'"),
        ('[[route]]\nrecipe = "a"\nthreshhold = 1', "did you mean 'threshold'"),
        ('[[route]]\nrecipe = 3', "'recipe' must be a text"),
        ('[[route]]\nrecipe = "a"\nstrength = true', "'strength' must be a number"),
        ('[[route]]\nrecipe = "a"\nstrength = nan\nfeature = 1\nabove = 1', "finite"),
        ('[[route]]\nrecipe = "a"\nstrength = 11\nfeature = 1\nabove = 1', "between -10 and 10"),
        ('[[route]]\nrecipe = "a"', "either 'examples' or a 'feature'"),
        ('[[route]]\nrecipe = "a"\nexamples = []', "either 'examples' or a 'feature'"),
        ('[[route]]\nrecipe = "a"\nexamples = ["x"]\nfeature = 1', "either 'examples' or a 'feature'"),
        ('[[route]]\nrecipe = "a"\nexamples = ["x", "y"]', "2 different examples are too few"),
        ('[[route]]\nrecipe = "a"\nexamples = ["x", "X!", "x"]', "1 different examples are too few"),
        ('[[route]]\nrecipe = "a"\nexamples = ["x", 3]', "list of texts"),
        ('[[route]]\nrecipe = "a"\nexamples = ["x", " "]', "empty"),
        ('[[route]]\nrecipe = " "\nfeature = 1\nabove = 1', "empty"),
        ('[[route]]\nrecipe = "a"\nexamples = ["x"]\nthreshold = 2', "cosine between -1 and 1"),
        ('[[route]]\nrecipe = "a"\nexamples = ["x"]\nthreshold = 0.5\nmatch = "near"', "did you mean 'nearest'"),
        ('[[route]]\nrecipe = "a"\nexamples = ["x"]\nthreshold = 0.5\nabove = 1', "'above' belongs to a feature"),
        ('[[route]]\nrecipe = "a"\nfeature = 1', "needs 'above'"),
        ('[[route]]\nrecipe = "a"\nfeature = -1\nabove = 1', "from 0 on"),
        ('[[route]]\nrecipe = "a"\nfeature = 1.5\nabove = 1', "a whole number"),
        ('[[route]]\nrecipe = "a"\nfeature = 1\nabove = 1\nthreshold = 0.5', "belong to examples"),
        ('[[route]]\nrecipe = "a"\nfeature = 1\nabove = 1\n' * 2, "two routes are called 'a'"),
    ],
)  # fmt: skip
def test_a_table_that_makes_no_sense_is_explained(tmp_path: Path, tiny: LanguageModel, text: str, why: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(DataError, match=why) as caught:
        Router.from_file(path, model=tiny)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read routes"):
        Router.from_file(tmp_path / "absent.toml")


@pytest.mark.model
def test_the_real_encoder_tells_kinds_of_prompts_apart(bundled: LanguageModel, tmp_path: Path) -> None:
    text = """
choose = "best"
[[route]]
recipe = "child-friendly"
examples = [
  "My daughter asks why the sky is blue.", "Explain gravity to a five-year-old.", "My kid wants to know how planes fly.",
  "How do I tell my little son where rain comes from?", "Explain money to a small child.",
]
[[route]]
recipe = "empathetic"
examples = [
  "I feel so lonely since she left.", "My dog died yesterday.", "I am sad and cannot sleep.", "Nobody likes me.",
  "I lost my job and feel worthless.",
]
[[route]]
name = "ship"
recipe = "pirate"
feature = 0
above = 1e9
"""
    router = Router.from_file(table(tmp_path, text), model=bundled)
    child, sad = router.route("My six-year-old asks how magnets work."), router.route("I miss my grandmother so much.")
    assert child is not None
    assert sad is not None
    assert (child.recipe, sad.recipe) == ("child-friendly", "empathetic")
    assert child.ms > 0
    assert router.route("Write a SQL query that joins two tables.") is None
    with pytest.raises(RequestError, match="half a character"):
        router.route("half a smile: \ud83d")
