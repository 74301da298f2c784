"""`steersman effects` and `fit sae-ts`, from measuring to a recipe, on the tiny model and a toy SAE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from tests.cli.conftest import Run
from tests.evals.effects_rig import D_SAE, FACTS, LAYER, random_map, toy

from steersman.cli.effects import explains
from steersman.cli.fit_sae_ts import feature_weights
from steersman.sae.file import save_sae
from steersman.steering.methods.effect_map_file import StoredMap
from steersman.steering.recipe_file import load_recipe


@pytest.fixture
def sae_folder(tmp_path: Path) -> Path:
    save_sae(toy(), tmp_path / "toy")
    return tmp_path / "toy"


def test_from_measuring_to_a_recipe_and_its_side_effects(
    run: Run, folder: Path, sae_folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A cat\n\nThe sea was\n")
    measuring = (
        *("effects", "measure", tmp_path / "measured", "--vectors", 40, "--model", folder, "--sae", sae_folder),
        *("--prompts", prompts, "--samples", 2, "--tokens", 4, "--json"),
    )
    assert run(*measuring).facts["measured"] == 40
    assert run(*measuring).facts["measured"] == 40  # Nothing is left to do.
    place = sae_folder / "effects" / "effects.safetensors"
    fitted = run("effects", "fit", tmp_path / "measured", "--out", place, "--held-out", 0.2, "--sgd", "--json").facts
    assert fitted["r_squared"]["n"] == 8
    assert fitted["data"]["sgd_r_squared"] is not None
    outcome = run("effects", "fit", tmp_path / "measured", "--out", place)
    assert (outcome.code, "--force" in outcome.err) == (1, True)
    out = tmp_path / "up.json"
    made = run(
        "fit", "sae-ts", "--feature", 3, "--feature", "5=-0.5", "--sae", sae_folder, "--out", out, "--json"
    ).facts
    assert made["data"]["features"] == {"3": 1.0, "5": -0.5}
    recipe = load_recipe(out)
    assert (recipe.layers, recipe.method) == ((LAYER,), "sae-ts")
    ahead = run("effects", "predict", out, "--sae", sae_folder, "--top", 3, "--json").facts
    assert [len(ahead[side]) for side in ("raised", "lowered")] == [3, 3]
    assert ahead["raised"][0]["change"] >= ahead["raised"][-1]["change"] > ahead["lowered"][0]["change"]
    assert "raised most" in run("effects", "predict", out, "--sae", sae_folder).out
    assert run("generate", "--recipe", out, "--model", folder, "--prompt", "A cat", "--max-tokens", 3).code == 0


def test_what_is_missing_is_said_with_the_next_step(run: Run, sae_folder: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("effects", "fit", tmp_path / "nothing", "--out", tmp_path / "m"), "steersman effects measure"),
        (
            ("fit", "sae-ts", "--feature", 3, "--sae", sae_folder, "--out", tmp_path / "r.json"),
            "there is no effect map",
        ),
        (("effects", "predict", tmp_path / "r.json", "--sae", sae_folder), "there is no effect map"),
    ):
        outcome = run(*arguments)
        assert outcome.code == 1
        assert said in outcome.err
    assert run("fit", "sae-ts", "--feature", "three", "--out", tmp_path / "r.json").code == 2
    assert run("effects", "fit", tmp_path, "--out", tmp_path / "m", "--store-dtype", "int4").code == 2


def test_features_and_weights_are_read() -> None:
    assert feature_weights(["4", "5=-0.5", "4=2"]) == {4: 3.0, 5: -0.5}
    assert max(feature_weights([str(D_SAE)])) == D_SAE  # Whether it exists, the map says.
    with pytest.raises(typer.BadParameter, match="ID=WEIGHT"):
        feature_weights(["x=1"])


@pytest.mark.parametrize(("mean", "warns"), [(0.4, False), (0.0, True), (-0.2, True), (None, False)])
def test_a_map_that_explains_nothing_is_said_to_be_a_guess(mean: float | None, warns: bool) -> None:
    found = replace(FACTS, r_squared=replace(FACTS.r_squared, mean=mean))
    assert ("no better than a guess" in explains(StoredMap(random_map(), found))) is warns
