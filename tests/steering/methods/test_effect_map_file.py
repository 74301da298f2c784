"""Effect maps on disk: round trips in every format, bound to their SAE; the published files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.evals.effects_rig import FACTS, random_map, ref_of, toy

from steersman.errors import DataError, SaeError, SteersmanError
from steersman.steering.methods.effect_map_file import (
    Store,
    load_effect_map,
    read_published_adapter,
    read_published_effects,
    save_effect_map,
)

MAP = random_map()


@pytest.mark.parametrize(("store", "error"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", 0.5 / 127)])
def test_a_map_comes_back_as_exact_as_its_format(tmp_path: Path, store: Store, error: float) -> None:
    save_effect_map(MAP, FACTS, tmp_path / "map.safetensors", store=store)
    found, facts = load_effect_map(tmp_path / "map.safetensors", FACTS.sae)
    assert facts == FACTS
    assert torch.equal(found.bias, MAP.bias)
    worst = (found.weights - MAP.weights).abs() / MAP.weights.abs().amax(0)
    assert float(worst.max()) <= error + 1e-6


def test_effects_of_another_sae_are_refused(tmp_path: Path) -> None:
    save_effect_map(MAP, FACTS, tmp_path / "map.safetensors")
    with pytest.raises(SaeError, match="effects of another SAE"):
        load_effect_map(tmp_path / "map.safetensors", ref_of(toy(seed=9)))


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    with pytest.raises(DataError, match="there is no effect map"):
        load_effect_map(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is no effect map"):
        load_effect_map(path)
    save_file({"weights": torch.ones(2, 2)}, path)
    with pytest.raises(DataError, match="but no effect map"):
        load_effect_map(path)


def test_a_damaged_map_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    save_effect_map(MAP, FACTS, path, store="float32")
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        load_effect_map(path)


def test_facts_of_another_format_or_with_unknown_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    save_effect_map(MAP, FACTS, path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for change, said in (
        ({"format": 7}, "format 1 "),
        ({"penalti": 1.0}, "penalti"),
    ):
        facts = metadata["steersman_effect_map"]
        key, value = next(iter(change.items()))
        broken = (
            facts.replace('"format":1', f'"{key}":{value}') if key == "format" else facts[:-1] + f',"{key}":{value}}}'
        )
        save_file(tensors, path, metadata={**metadata, "steersman_effect_map": broken})
        with pytest.raises(DataError, match=said):
            load_effect_map(path)


def test_the_published_files_are_read(tmp_path: Path) -> None:
    torch.save({"W": torch.nn.Parameter(MAP.weights), "b": torch.nn.Parameter(MAP.bias)}, tmp_path / "adapter.pt")
    torch.save({"features": torch.ones(4, 3), "effects": torch.ones(4, 7).half()}, tmp_path / "effects.pt")
    found = read_published_adapter(tmp_path / "adapter.pt")
    assert torch.equal(found.weights, MAP.weights)
    assert torch.equal(found.bias, MAP.bias)
    effects = read_published_effects(tmp_path / "effects.pt")
    assert (tuple(effects.vectors.shape), tuple(effects.effects.shape)) == ((4, 3), (4, 7))
    with pytest.raises(DataError, match="no published adapter file: it holds effects, features"):
        read_published_adapter(tmp_path / "effects.pt")
    torch.save({"features": torch.ones(4, 3), "effects": torch.ones(5, 7)}, tmp_path / "effects.pt")
    with pytest.raises(DataError, match="do not go together"):
        read_published_effects(tmp_path / "effects.pt")


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    torch.save({"W": Path("x"), "b": torch.ones(2)}, tmp_path / "adapter.pt")
    with pytest.raises(SteersmanError):
        read_published_adapter(tmp_path / "adapter.pt")
    with pytest.raises(SteersmanError, match="no such file"):
        read_published_adapter(tmp_path / "missing.pt")
