"""SAEs are found by name, by folder and by what a recipe says of them; everything else is told where to look."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.sae.toys import toy_sae

from steersman.errors import SaeError
from steersman.sae.file import save_sae
from steersman.sae.library import DEFAULT, find_sae, list_saes, place_for, resolve, shelf


def test_what_is_put_on_the_shelf_is_found_by_name(tmp_path: Path) -> None:
    sae = toy_sae("jumprelu")
    save_sae(sae, place_for("mine", tmp_path))
    entry = find_sae("mine", tmp_path)
    assert (entry.name, entry.folder, entry.config) == ("mine", shelf(tmp_path) / "mine", sae.config)
    assert entry.load().weights_hash == sae.weights_hash
    assert "mine" in [each.name for each in list_saes(tmp_path)]


def test_a_folder_is_found_by_its_path(tmp_path: Path) -> None:
    save_sae(toy_sae("relu"), tmp_path / "here")
    assert find_sae(str(tmp_path / "here"), tmp_path).config.architecture == "relu"
    assert place_for(str(tmp_path / "here"), tmp_path) == tmp_path / "here"


def test_a_reference_finds_its_sae_under_another_name(tmp_path: Path) -> None:
    right, other = toy_sae("jumprelu"), toy_sae("jumprelu", seed=1)
    save_sae(other, place_for("mine", tmp_path))
    save_sae(right, place_for("renamed", tmp_path))
    assert resolve(right.ref("mine"), tmp_path).weights_hash == right.weights_hash


def test_a_reference_to_nothing_says_what_to_do(tmp_path: Path) -> None:
    save_sae(toy_sae("jumprelu"), place_for("mine", tmp_path))
    with pytest.raises(SaeError, match="is not in the library; import it first"):
        resolve(toy_sae("jumprelu", seed=1).ref("mine"), tmp_path)


def test_a_misspelt_name_is_told_what_there_is(tmp_path: Path) -> None:
    save_sae(toy_sae("relu"), place_for("harbour", tmp_path))
    with pytest.raises(SaeError, match="did you mean 'harbour'"):
        find_sae("harbor", tmp_path)


@pytest.mark.parametrize("name", [DEFAULT, "", ".hidden", "a b", "x" * 200])
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SaeError, match="cannot be called"):
        place_for(name, tmp_path)


def test_what_is_damaged_is_left_out_of_the_list_and_named_when_asked_for(tmp_path: Path) -> None:
    save_sae(toy_sae("relu"), place_for("broken", tmp_path))
    (place_for("broken", tmp_path) / "cfg.json").write_text("{")
    assert "broken" not in [each.name for each in list_saes(tmp_path)]
    with pytest.raises(SaeError, match="no valid JSON"):
        find_sae("broken", tmp_path)
