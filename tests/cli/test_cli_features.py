"""`steersman sae index` and `steersman features` from end to end, on a tiny model and an SAE that is trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import PAIRS, Run

_SHIP = "the ship sets sail, the sailor sings and the sea is calm"
_CODE = "def sail(ship): return ship.sea(1) + 22"
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": f"{_SHIP if n % 2 else _CODE} {n}"} for n in range(160)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sae") / "tiny"


@pytest.fixture
def sae(run: Run, folder: Path, texts: Path, home: Path) -> Path:
    """A trained and indexed SAE, made once."""
    if not (home / "index").is_dir():
        small = ("--latents", 64, "-k", 8, "--tokens", 8192, "--collect", 5000, "--layer", 2, "--model", folder)
        assert run("sae", "train", "--text", texts, "--out", home, *small).code == 0
        said = run("sae", "index", home, "--text", texts, "--tokens", 3000, "--model", folder, "--json").facts
        assert (said["features"], said["tokens"]) == (64, 3000)
        assert 0 < said["live"] <= 64
        assert said["labels_in_all"] == said["live"]
    return home


def test_search_finds_by_meaning_by_token_and_among_given_ones(run: Run, sae: Path) -> None:
    hits = run("features", "search", "a sailor at sea", "--sae", sae, "-n", 5, "--json").facts
    assert len(hits) == 5
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    asked = [hits[3]["feature"], hits[1]["feature"]]
    words = [word for feature in asked for word in ("--among", feature)]
    again = run("features", "search", "a sailor at sea", "--sae", sae, *words, "--json").facts
    assert [hit["feature"] for hit in again] == asked[::-1]
    token = run("features", "search", "s", "--token", "--sae", sae, "--json").facts
    assert set(token) == {"fires", "promotes"}
    shown = run("features", "search", "a sailor at sea", "--sae", sae)
    assert (shown.code, shown.err) == (0, "")
    assert str(hits[0]["feature"]) in shown.out
    assert f"features show {hits[0]['feature']} --sae {sae}" in " ".join(shown.out.split())


def test_show_says_the_same_to_people_and_programs(run: Run, sae: Path) -> None:
    feature = run("features", "search", "ship", "--sae", sae, "-n", 1, "--json").facts[0]["feature"]
    facts = run("features", "show", feature, "--sae", sae, "--json").facts
    assert facts["feature"] == feature
    assert 0 < facts["density"] <= 1
    assert len(facts["promoted"]) == len(facts["suppressed"]) == 10
    assert all(len(context["tokens"]) == len(context["activations"]) for context in facts["contexts"])
    shown = run("features", "show", feature, "--sae", sae).out
    assert facts["label"]["text"].split('"')[0].strip() in shown
    assert "«" in shown
    assert "makes likelier" in shown
    assert f"near {facts['neighbours'][0]['feature']}" in shown


def test_contrast_takes_two_files_or_one_of_pairs(run: Run, sae: Path, tmp_path: Path, pairs: Path) -> None:
    ships, code = tmp_path / "ships.txt", tmp_path / "code.jsonl"
    ships.write_text("".join(f"{_SHIP} {n}\n" for n in range(6)))
    code.write_text("".join(json.dumps({"text": f"{_CODE} {n}"}) + "\n" for n in range(6)))
    facts = run("features", "contrast", ships, code, "--sae", sae, "-n", 3, "--json").facts
    assert (facts["n_positive"], facts["n_negative"]) == (6, 6)
    assert all(each["score"] > 0 for each in facts["positive"])
    assert all(each["score"] < 0 for each in facts["negative"])
    assert facts["positive"][0]["auc"] > 0.9
    assert set(facts["labels"]) >= {str(each["feature"]) for each in facts["positive"]}
    assert "more in the first" in run("features", "contrast", ships, code, "--sae", sae).out
    paired = run("features", "contrast", pairs, "--pairs", "--sae", sae, "--json").facts
    assert paired["n_positive"] == len(PAIRS)


def test_inspect_reads_texts_and_answers(run: Run, sae: Path) -> None:
    facts = run("features", "inspect", _SHIP, "--sae", sae, "-n", 2, "--json").facts
    assert "".join(token["token"] for token in facts["tokens"]) == _SHIP[1:]
    assert all(len(token["features"]) <= 2 for token in facts["tokens"])
    answer = run("features", "inspect", "Who?", "--chat", "--answer", "A sailor.", "--sae", sae, "--json").facts
    assert "".join(token["token"] for token in answer["tokens"]) == "A sailor."
    assert "over the whole text" in run("features", "inspect", _SHIP, "--sae", sae).out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "64"], 1, "feature 64 does not exist; this SAE has 0 to 63"),
        (["show", "-1"], 2, ""),
        (["search", " "], 1, "the query is empty"),
        (["search", "x", "-n", "0"], 2, "-n"),
        (["contrast", "missing.txt", "other.txt"], 1, "cannot read texts from missing.txt"),
        (["contrast", "missing.txt"], 2, "give two files"),
        (["inspect", ""], 1, "the text is empty"),
        (["inspect", "x", "--answer", "y"], 2, "--chat"),
    ],
)
def test_features_refuse_in_one_line(run: Run, sae: Path, arguments: list[str], code: int, said: str) -> None:
    outcome = run("features", *arguments, "--sae", sae)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in " ".join(outcome.err.split())
    if code == 1:
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("\n") == 1


def test_an_sae_without_index_says_how_to_make_one(run: Run, sae: Path, tmp_path: Path) -> None:
    for name in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / name).write_bytes((sae / name).read_bytes())
    outcome = run("features", "search", "x", "--sae", tmp_path)
    assert outcome.code == 1
    assert "steersman sae index" in outcome.err
