"""Recipes on disk: what is loaded is what was saved, and whatever is wrong with a file is said in one line."""

from __future__ import annotations

import errno
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save as save_tensors
from tests.recipes import few, recipes

from steersman.errors import RecipeError, StorageError
from steersman.steering.condition import Above, Since, TokenIs
from steersman.steering.edits import Add, Clamp, FeatureWeight
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import from_wire, load_recipe, save_recipe, schema, tensor_path, to_wire
from steersman.steering.target import Latent
from steersman.steering.vector import Vector
from steersman.steering.where import Ramp, Where

_VECTOR, _SECOND = Vector([1.0, -2.0, 0.5]), Vector([0.25, 3.0, 1.0])
_LATENT = Latent(id=7, encoder_row=_VECTOR, encoder_bias=0.5, decoder_row=_SECOND, threshold=0.1, label="sea")
_RECIPE = Recipe(
    name="pirate",
    description="talks like a pirate",
    edits=(
        Add(
            layer=2,
            vector=_VECTOR,
            strength=0.5,
            where=Where(scope="generated", stop=20),
            schedule=Ramp(tokens=5),
            features=(FeatureWeight(id=7, weight=0.5, label="sea"),),
            when=Since(item=Above(layer=1, target=_LATENT, threshold=0.2)),
        ),
        Clamp(layer=2, target=_LATENT, value=4.0),
    ),
    abort=TokenIs(token_ids=(5,)),
    data={"pairs": 12, "seed": 0},
    evidence={"score": 0.25, "judge": None},
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A recipe on disk."""
    path = tmp_path / "pirate.json"
    save_recipe(_RECIPE, path)
    return path


# --- round trip


@settings(few, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(recipe=recipes())
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, recipe: Recipe) -> None:
    save_recipe(recipe, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe
    facts, tensors = to_wire(recipe)
    assert from_wire(json.loads(json.dumps(facts, allow_nan=False)), tensors) == recipe


def test_two_files_and_nothing_else(saved: Path) -> None:
    assert sorted(path.name for path in saved.parent.iterdir()) == ["pirate.json", "pirate.safetensors"]
    assert load_recipe(saved) == _RECIPE


def test_vectors_may_stand_inline(saved: Path) -> None:
    text = saved.read_text()
    for vector in (_VECTOR, _SECOND):
        text = text.replace(json.dumps(vector.key), json.dumps(vector.tensor.tolist()))
    saved.write_text(text)
    tensor_path(saved).unlink()
    assert load_recipe(saved) == _RECIPE


def test_a_text_that_looks_like_a_reference_is_only_a_text(tmp_path: Path) -> None:
    facts = {
        "steersman_recipe": 1,
        "name": "vector: of pirates",
        "edits": [{"kind": "add", "layer": 0, "vector": [1.0]}],
    }
    (tmp_path / "recipe.json").write_text(json.dumps(facts))
    assert load_recipe(tmp_path / "recipe.json").name == "vector: of pirates"


def test_each_vector_is_stored_once(saved: Path) -> None:
    _, tensors = to_wire(_RECIPE)
    assert set(tensors) == {_VECTOR.key, _SECOND.key}
    assert tensor_path(saved).stat().st_size < 400


def test_the_file_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    odd = Recipe(name="ahoy ☠ \n\u2028\x00", edits=_RECIPE.edits, data={"loss": math.nan, "best": [math.inf]})
    try:
        save_recipe(odd, tmp_path / "odd.json")
    except RecipeError:
        return  # To refuse numbers that JSON does not have is right too.

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "odd.json").read_bytes(), parse_constant=refuse)
    load_recipe(tmp_path / "odd.json")


def test_weights_of_features_are_finite() -> None:
    with pytest.raises(RecipeError):
        FeatureWeight(id=1, weight=math.nan)


# --- saving


def test_names_that_share_a_stem_do_not_share_their_tensors(tmp_path: Path) -> None:
    one, two = (Recipe(name="r", edits=(Add(layer=0, vector=vector),)) for vector in (_VECTOR, _SECOND))
    save_recipe(one, tmp_path / "pirate.v1")
    save_recipe(two, tmp_path / "pirate.v2")
    assert load_recipe(tmp_path / "pirate.v1") == one
    assert load_recipe(tmp_path / "pirate.v2") == two


def test_a_recipe_is_not_saved_over_its_own_tensors(tmp_path: Path) -> None:
    path = tmp_path / "pirate.safetensors"
    try:
        save_recipe(_RECIPE, path)
    except (RecipeError, StorageError):
        assert list(tmp_path.iterdir()) == []
    else:
        assert load_recipe(path) == _RECIPE


@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_fills_up_leaves_the_old_recipe(saved: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    writes = 0
    original = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes == failing:
            original(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    changed = Recipe(name="other", edits=(Add(layer=0, vector=Vector([9.0, 9.0, 9.0])),))
    with pytest.raises(StorageError, match="full"):
        save_recipe(changed, saved)
    monkeypatch.undo()
    assert load_recipe(saved) == _RECIPE
    assert sorted(path.name for path in saved.parent.iterdir()) == ["pirate.json", "pirate.safetensors"]


def test_a_folder_in_the_way_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "pirate").mkdir()
    with pytest.raises(StorageError):
        save_recipe(_RECIPE, tmp_path / "pirate")
    assert [path.name for path in tmp_path.iterdir()] == ["pirate"]


def test_a_path_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError):
        save_recipe(_RECIPE, Path())


def test_a_name_that_is_no_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        save_recipe(Recipe(name="half a \ud800", edits=_RECIPE.edits), tmp_path / "recipe.json")
    assert list(tmp_path.iterdir()) == []


# --- facts that are wrong


def _facts() -> dict[str, Any]:
    return json.loads(json.dumps(to_wire(_RECIPE)[0]))  # type: ignore[no-any-return]


def _refusal(facts: Any) -> str:
    with pytest.raises(RecipeError) as refused:
        from_wire(facts, to_wire(_RECIPE)[1])
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("place", "wrong", "meant"),
    [
        ((), "descripton", "description"),
        (("edits", 0), "strenght", "strength"),
        (("edits", 0), "vectr", "vector"),
        (("edits", 1), "valeu", "value"),
        (("edits", 0, "where"), "scop", "scope"),
        (("edits", 0, "where"), "strat", "start"),
        (("edits", 0, "schedule"), "tokns", "tokens"),
        (("edits", 0, "features", 0), "lable", "label"),
        (("edits", 0, "when"), "itm", "item"),
        (("edits", 0, "when", "item"), "treshold", "threshold"),
        (("edits", 0, "when", "item", "target"), "encoder_raw", "encoder_row"),
        (("edits", 1, "target"), "lable", "label"),
        (("abort",), "token_id", "token_ids"),
    ],
    ids=str,
)
@pytest.mark.parametrize("instead", [False, True], ids=["beside", "instead"])
def test_unknown_fields_are_refused_with_a_suggestion(
    place: tuple[str | int, ...], wrong: str, meant: str, instead: bool
) -> None:
    facts = _facts()
    holder: Any = facts
    for part in place:
        holder = holder[part]
    holder[wrong] = holder.pop(meant) if instead else holder[meant]
    message = _refusal(facts)
    assert f"'{wrong}'" in message
    assert f"'{meant}'" in message
    assert all(str(part) in message for part in place)


def test_unknown_fields_of_the_model_and_the_sae_are_refused_with_a_suggestion() -> None:
    model = {"id": "m", "config_hash": "c", "weights_hash": "w"}
    assert "'weights_hash'" in _refusal({**_facts(), "model": {**model, "weight_hash": "w"}})
    sae = {"id": "s", "layer": 1, "weights_hash": "w"}
    assert "'layer'" in _refusal({**_facts(), "sae": {**sae, "layr": 1}})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("edits", 1, "strength"), math.nan),
        (("edits", 1, "strength"), "much"),
        (("edits", 1, "layer"), -1),
        (("edits", 1, "layer"), 1.5),
        (("edits", 1, "layer"), None),
        (("edits", 1, "value"), math.inf),
        (("edits", 0, "vector"), [math.nan, 1.0, 2.0]),
        (("edits", 0, "vector"), "vector:" + "0" * 64),
        (("edits", 0, "vector"), {}),
        (("edits", 0, "schedule"), {"kind": "ramp", "tokens": 0}),
        (("edits", 0, "schedule"), {"kind": "rmp", "tokens": 3}),
        (("edits", 0, "where"), {"scope": "everywhere"}),
        (("edits", 0, "where"), {"start": -1}),
        (("edits", 0, "when"), {"kind": "all", "items": []}),
        (("edits", 0, "when", "item", "measure"), "cosine"),
        (("edits", 1, "target", "threshold"), -1.0),
        (("edits", 1, "kind"), "clmap"),
        (("abort",), {"kind": "token", "token_ids": []}),
        (("name",), ""),
        (("name",), 3),
        (("edits",), {}),
        (("edits",), None),
        (("data",), []),
    ],
    ids=str,
)
def test_wrong_values_are_refused_at_their_place(place: tuple[str | int, ...], value: Any) -> None:
    facts = _facts()
    holder: Any = facts
    for part in place[:-1]:
        holder = holder[part]
    holder[place[-1]] = value
    message = _refusal(facts)
    where = place[:-1] if place[-1] == "kind" else place
    found = re.split(r"[^\w]+", message)
    assert all(str(part) in found for part in where), message


@pytest.mark.parametrize("kind", ["edits", "schedule", "when", "target"])
def test_a_missing_kind_is_named(kind: str) -> None:
    facts = _facts()
    holder = {"edits": facts["edits"][0], "target": facts["edits"][1]["target"]}.get(kind) or facts["edits"][0][kind]
    del holder["kind"]
    assert "kind" in _refusal(facts)


@pytest.mark.parametrize(
    "facts", [None, [], "recipe", 3, {}, {"steersman_recipe": 2}, {"steersman_recipe": "1"}], ids=repr
)
def test_what_is_no_recipe_is_refused(facts: Any) -> None:
    _refusal(facts)


@pytest.mark.parametrize("version", [0, 2, True, 1.5, None, "1"], ids=repr)
def test_other_formats_are_refused(version: Any) -> None:
    assert "format" in _refusal({**_facts(), "steersman_recipe": version})


def test_conditions_nested_without_end_are_refused() -> None:
    condition: dict[str, Any] = {"kind": "token", "token_ids": [1]}
    for _ in range(5000):
        condition = {"kind": "not", "item": condition}
    _refusal({**_facts(), "abort": condition})


# --- files that are wrong


def _unreadable(path: Path) -> str:
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    message = str(refused.value)
    assert "\n" not in message
    assert path.stem in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"not json",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"a":' * 100_000,
        b'{"steersman_recipe": ' + b"1" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
    ids=["empty", "cut", "text", "binary", "list", "null", "deep", "long number", "byte order mark"],
)
def test_what_is_no_recipe_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.json").write_bytes(content)
    _unreadable(tmp_path / "recipe.json")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    _unreadable(tmp_path / "nothing.json")
    _unreadable(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # A hole: one tebibyte that takes no space.
    assert "large" in _unreadable(path)


def test_a_huge_tensor_file_is_refused_unread(saved: Path) -> None:
    with tensor_path(saved).open("wb") as file:
        file.truncate(1 << 40)
    _unreadable(saved)


def test_missing_tensors_are_named(saved: Path) -> None:
    tensor_path(saved).unlink()
    assert tensor_path(saved).name in _unreadable(saved)


def test_tensors_of_another_recipe_are_noticed(saved: Path) -> None:
    tensor_path(saved).write_bytes(save_tensors({Vector([1.0]).key: torch.ones(1)}))
    _unreadable(saved)


def test_tensors_under_each_others_names_are_noticed(saved: Path) -> None:
    mixed = {_VECTOR.key: _SECOND.tensor, _SECOND.key: _VECTOR.tensor}
    tensor_path(saved).write_bytes(save_tensors(mixed))
    assert "damaged" in _unreadable(saved)


def test_one_wrong_bit_anywhere_in_the_numbers_is_noticed(saved: Path) -> None:
    data = tensor_path(saved).read_bytes()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    for at in range(begin, len(data)):
        tensor_path(saved).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        _unreadable(saved)


def test_every_truncation_is_noticed(saved: Path) -> None:
    data = tensor_path(saved).read_bytes()
    for length in (0, 1, 7, 8, 9, 50, len(data) - 13, len(data) - 1):
        tensor_path(saved).write_bytes(data[:length])
        _unreadable(saved)


def _header(dtype: str, shape: list[int], size: int) -> bytes:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    second = {"dtype": "F32", "shape": [3], "data_offsets": [size, size + 12]}
    header = json.dumps({_VECTOR.key: entry, _SECOND.key: second}).encode()
    return struct.pack("<Q", len(header)) + header + b"\x01" * size + _SECOND.tensor.numpy().tobytes()


@pytest.mark.parametrize(
    "content",
    [
        _header("I32", [3], 12),
        _header("F64", [3], 24),
        _header("BF16", [3], 6),
        _header("BOOL", [3], 3),
        _header("F8_E4M3", [3], 3),
        _header("F8_E8M0", [3], 3),
        _header("F4", [6], 3),
        _header("C64", [3], 24),
        _header("XX", [3], 12),
        _header("F32", [0], 0),
        _header("F32", [1, 3], 12),
        _header("F32", [], 4),
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        b"\x80\x04\x95\x00",
    ],
    ids=[
        *("i32", "f64", "bf16", "bool", "f8", "e8", "f4", "complex", "unknown dtype"),
        *("empty", "matrix", "scalar", "long header", "list", "pickle"),
    ],
)
def test_tensor_files_that_hold_something_else_are_refused(saved: Path, content: bytes) -> None:
    tensor_path(saved).write_bytes(content)
    _unreadable(saved)


# --- schema


def test_every_reference_in_the_schema_leads_somewhere_and_every_object_is_closed() -> None:
    whole = schema()
    seen = list(_objects(whole))
    assert {"Add", "Clamp", "Scale", "Ablate", "Rotate", "Where", "Since", "Latent"} <= set(whole["$defs"])
    for part in seen:
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/$defs/") in whole["$defs"]
        if "properties" in part:
            assert part["additionalProperties"] is False
            assert set(part.get("required", [])) <= set(part["properties"])


@few
@given(recipes())
def test_what_is_written_is_what_the_schema_says(recipe: Recipe) -> None:
    facts = json.loads(json.dumps(to_wire(recipe)[0]))
    assert list(_violations(facts, schema(), schema())) == []


def test_the_schema_says_no_to_what_is_refused() -> None:
    facts = _facts()
    facts["edits"][0]["strenght"] = 1.0
    assert list(_violations(facts, schema(), schema()))


def _objects(value: Any) -> Any:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(item)


_TYPES: dict[str, Any] = {
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
}


def _violations(value: Any, part: dict[str, Any], whole: dict[str, Any], place: str = "") -> Any:
    """The few words of JSON schema that pydantic writes, checked."""
    if "$ref" in part:
        yield from _violations(value, whole["$defs"][part["$ref"].removeprefix("#/$defs/")], whole, place)
    for choice in ("anyOf", "oneOf"):
        if choice in part and all(list(_violations(value, option, whole, place)) for option in part[choice]):
            yield f"{place}: none of {choice}"
    if "type" in part:
        fits = isinstance(value, _TYPES[part["type"]])
        if not fits or (isinstance(value, bool) and part["type"] != "boolean"):
            yield f"{place}: no {part['type']}"
            return
    if "const" in part and value != part["const"]:
        yield f"{place}: not {part['const']}"
    if "enum" in part and value not in part["enum"]:
        yield f"{place}: not among {part['enum']}"
    if "pattern" in part and not re.search(part["pattern"], value):
        yield f"{place}: does not match"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _violations(item, part.get("items", {}), whole, f"{place}.{index}")
    if isinstance(value, dict) and "properties" in part:
        yield from (f"{place}: no {name}" for name in part.get("required", []) if name not in value)
        for name, item in value.items():
            if name in part["properties"]:
                yield from _violations(item, part["properties"][name], whole, f"{place}.{name}")
            elif part.get("additionalProperties") is False:
                yield f"{place}: unknown {name}"
