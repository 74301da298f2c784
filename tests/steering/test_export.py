"""Laws of export: what is written is what steers, other programs read it as we mean it, and nothing is bent to fit."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.tiny import D_MODEL, N_LAYERS

from steersman import files
from steersman.errors import RecipeError, RecipeMismatch, StorageError
from steersman.models.blocks import editing
from steersman.models.language_model import LanguageModel, ModelRef, chat
from steersman.models.load import load_model, resolve
from steersman.models.residuals import ModelProfile, load_profile, measure_profile, read_residuals
from steersman.settings import Settings
from steersman.steering.condition import TokenIs
from steersman.steering.edits import Ablate, Add, Clamp, Rotate, Scale
from steersman.steering.export import from_gguf, from_safetensors, raw_vectors, to_gguf, to_safetensors
from steersman.steering.plan import BatchPlan, TokenBatch
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe, save_recipe
from steersman.steering.target import Direction
from steersman.steering.vector import Vector
from steersman.steering.where import Decay, Where

NORMS = (2.0, 3.0, 5.0, 7.0)
PROFILE = ModelProfile("a" * 64, NORMS)
REF = ModelRef(id="tiny", config_hash="c" * 64, weights_hash="a" * 64)
V, W, U = (Vector(torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))) for seed in range(3))
EDITS = (
    Add(layer=3, vector=U, strength=-0.5),
    Add(layer=1, vector=V, strength=0.4),
    Add(layer=1, vector=W, strength=2.0, unit="raw"),
)
RECIPE = Recipe(
    name="pirate", edits=EDITS, description="Talk like a pirate — arr", model=REF, method="caa", data={"n": 3}
)


def one(**fields: object) -> Recipe:
    return Recipe(name="one", edits=(Add(**{"layer": 1, "vector": V, **fields}),))


def written(recipe: Recipe, folder: Path, profile: ModelProfile = PROFILE) -> Path:
    path = folder / "vector.gguf"
    to_gguf(recipe, profile, len(profile.mean_norms), path, "llama")
    return path


# --- the files ---


def test_units_and_strengths_are_folded_in_and_one_layer_is_one_vector() -> None:
    vectors = raw_vectors(RECIPE, PROFILE)
    assert list(vectors) == [1, 3]
    torch.testing.assert_close(vectors[1].tensor, 0.4 * NORMS[1] * V.tensor / V.tensor.norm() + 2.0 * W.tensor)
    torch.testing.assert_close(vectors[3].tensor, -0.5 * NORMS[3] * U.tensor / U.tensor.norm())


def test_a_gguf_follows_the_layout_that_llama_cpp_checks(tmp_path: Path) -> None:
    path = written(RECIPE, tmp_path)
    reader = gguf.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert facts == {
        "general.architecture": "controlvector",
        "general.name": "pirate",
        "general.description": RECIPE.description,
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.3"]
    for tensor, vector in zip(reader.tensors, raw_vectors(RECIPE, PROFILE).values(), strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [D_MODEL]
        assert tensor.data_offset % gguf.GGUF_DEFAULT_ALIGNMENT == 0
        assert torch.equal(torch.tensor(tensor.data), vector.tensor)
    # llama.cpp reads the data section as one piece, its last padding included.
    last = reader.tensors[-1]
    assert path.stat().st_size >= last.data_offset + last.n_bytes
    assert path.stat().st_size % gguf.GGUF_DEFAULT_ALIGNMENT == 0


@pytest.mark.parametrize("width", [1, 7, D_MODEL, 577])
def test_any_width_survives_the_padding(tmp_path: Path, width: int) -> None:
    edits = tuple(
        Add(layer=layer, vector=Vector(torch.arange(1, width + 1) * layer), unit="raw") for layer in (1, 2, 3)
    )
    path = written(Recipe(name="wide", edits=edits), tmp_path)
    assert [edit.vector for edit in from_gguf(path).edits] == [edit.vector for edit in edits]
    assert path.stat().st_size % gguf.GGUF_DEFAULT_ALIGNMENT == 0


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_what_is_read_back_has_the_same_raw_vectors_and_writes_the_same_file(tmp_path: Path, kind: str) -> None:
    first, second = tmp_path / f"first.{kind}", tmp_path / f"second.{kind}"
    if kind == "gguf":
        to_gguf(RECIPE, PROFILE, N_LAYERS, first, "llama")
        back = from_gguf(first)
        to_gguf(back, PROFILE, N_LAYERS, second, "llama")
        assert back.model is None
        assert first.read_bytes() == second.read_bytes()
    else:
        to_safetensors(RECIPE, PROFILE, first)
        back = from_safetensors(first)
        to_safetensors(back, PROFILE, second)
        assert from_safetensors(second) == back
        assert (back.model, back.method, back.data) == (RECIPE.model, RECIPE.method, RECIPE.data)
    assert raw_vectors(back, PROFILE) == raw_vectors(RECIPE, PROFILE)
    assert (back.name, back.description) == (RECIPE.name, RECIPE.description)
    assert all(edit.unit == "raw" and edit.strength == 1.0 and not edit.where.first_token for edit in back.edits)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_what_is_read_back_steers_alike(tiny: LanguageModel, tmp_path: Path, kind: str) -> None:
    profile = measure_profile(tiny)
    edits = tuple(
        Add(layer=e.layer, vector=e.vector, strength=e.strength, where=Where(first_token=True)) for e in EDITS
    )
    recipe, path = Recipe(name="sum", edits=edits), tmp_path / "vectors"
    if kind == "gguf":
        to_gguf(recipe, profile, N_LAYERS, path, "llama")
        back = from_gguf(path, first_token=True)
    else:
        to_safetensors(recipe, profile, path)
        back = from_safetensors(path)
    expected = steered(tiny, recipe, profile, list(range(10, 30)))
    plain = steered(tiny, None, profile, list(range(10, 30)))
    assert relative(expected, plain) > 0.1
    assert relative(steered(tiny, back, profile, list(range(10, 30))), expected) < 1e-5


def test_safetensors_say_what_they_are(tmp_path: Path) -> None:
    recipe = Recipe(name="low", edits=(Add(layer=0, vector=V, where=Where(first_token=True)),), model=REF)
    to_safetensors(recipe, PROFILE, tmp_path / "low.safetensors")
    with safe_open(tmp_path / "low.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensor = file.get_tensor("layer.0")
    assert names == ["layer.0"]
    assert (tensor.dtype, tensor.shape) == (torch.float32, (D_MODEL,))
    assert tensor.norm().item() == pytest.approx(NORMS[0], rel=1e-6)
    assert (metadata["model_id"], metadata["weights_hash"]) == (REF.id, REF.weights_hash)
    assert (metadata["unit"], metadata["first_token"]) == ("raw", "edited")
    assert json.loads(metadata["recipe"])["name"] == "low"
    assert from_safetensors(tmp_path / "low.safetensors").edits[0].where == Where(first_token=True)


@pytest.mark.parametrize("layer", [1, 3])
def test_repeng_reads_ours_and_we_read_repengs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4 names it; NumPy 2 no longer has it.
    extract = pytest.importorskip("repeng.extract", reason="repeng is not installed whole", exc_type=ImportError)
    theirs = extract.ControlVector.import_gguf(written(one(layer=layer), tmp_path))
    assert theirs.model_type == "llama"
    assert list(theirs.directions) == [layer]
    assert np.array_equal(theirs.directions[layer], raw_vectors(one(layer=layer), PROFILE)[layer].tensor.numpy())
    theirs.export_gguf(tmp_path / "theirs.gguf")
    assert raw_vectors(from_gguf(tmp_path / "theirs.gguf"), PROFILE) == raw_vectors(one(layer=layer), PROFILE)


# --- refusals ---

REFUSED = {
    "clamp": (Clamp(layer=2, target=Direction(vector=W), value=1.0), "clamp at layer 2"),
    "scale": (Scale(layer=2, target=Direction(vector=W), factor=2.0), "scale at layer 2"),
    "ablate": (Ablate(layer=2, target=Direction(vector=W)), "ablate at layer 2"),
    "rotate": (Rotate(layer=2, vector=W, degrees=10), "rotate at layer 2"),
    "prompt only": (Add(layer=2, vector=W, where=Where(scope="prompt")), "every token"),
    "late start": (Add(layer=2, vector=W, where=Where(start=2)), "every token"),
    "one token": (Add(layer=2, vector=W, where=Where(token_ids=(5,))), "every token"),
    "schedule": (Add(layer=2, vector=W, schedule=Decay(half_life_tokens=5)), "decay"),
    "condition": (Add(layer=2, vector=W, when=TokenIs(token_ids=(5,))), "'when'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_fixed_vector_can_do_is_refused_by_name(tmp_path: Path, case: str) -> None:
    edit, said = REFUSED[case]
    recipe = Recipe(name="mixed", edits=(EDITS[0], edit))
    for write in (
        lambda: to_gguf(recipe, PROFILE, N_LAYERS, tmp_path / "x.gguf", "llama"),
        lambda: to_safetensors(recipe, PROFILE, tmp_path / "x.safetensors"),
    ):
        with pytest.raises(RecipeError) as error:
            write()
        assert "edits.1" in str(error.value)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_layer_0_goes_to_safetensors_alone(tmp_path: Path) -> None:
    recipe = Recipe(name="low", edits=(EDITS[0], Add(layer=0, vector=V)))
    with pytest.raises(RecipeError, match=r"edits\.1 \(add at layer 0\).*never layer 0"):
        written(recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []
    to_safetensors(recipe, PROFILE, tmp_path / "low.safetensors")
    assert from_safetensors(tmp_path / "low.safetensors").layers == (0, 3)


def test_nothing_is_exported_from_nothing_and_nothing_infinite(tmp_path: Path) -> None:
    mixed = Recipe(name="mixed", edits=(EDITS[0], Add(layer=1, vector=V, where=Where(first_token=True))))
    for recipe, said in (
        (0.0 * RECIPE, "nothing"),
        (one() + -one(), "nothing"),
        (1e39 * one(), "float32"),
        (Recipe(name="stop", edits=EDITS, abort=TokenIs(token_ids=(5,))), "abort"),
        (mixed, "first_token"),
    ):
        with pytest.raises(RecipeError, match=said):
            to_safetensors(recipe, PROFILE, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert raw_vectors(one() + -one() + one(layer=2), PROFILE).keys() == {2}


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeMismatch, match="another"):
        written(RECIPE, tmp_path, ModelProfile("b" * 64, NORMS))
    with pytest.raises(RecipeMismatch, match="layer 3"):
        written(RECIPE, tmp_path, ModelProfile("a" * 64, NORMS[:3]))
    with pytest.raises(RecipeMismatch, match="4 layers"):
        to_gguf(RECIPE, PROFILE, 5, tmp_path / "x.gguf", "llama")


# --- bad files ---


def gguf_with(path: Path, tensors: Mapping[str, np.ndarray], architecture: str = "controlvector") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ONES = np.ones(8, dtype=np.float32)
BAD = {
    "model": ({"token_embd.weight": ONES}, "llama"),
    "name": ({"direction.x": ONES}, "direction"),
    "other tensor": ({"direction.1": ONES, "norm": ONES}, "norm"),
    "half": ({"direction.1": ONES.astype(np.float16)}, "F32"),
    "matrix": ({"direction.1": np.ones((2, 8), dtype=np.float32)}, "F32"),
    "nan": ({"direction.1": ONES * np.nan}, "NaN"),
    "zero": ({"direction.1": ONES * 0}, "zero"),
    "widths": ({"direction.1": ONES, "direction.2": np.ones(4, dtype=np.float32)}, "dimensions"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_gguf_that_is_no_control_vector_is_refused(tmp_path: Path, case: str) -> None:
    tensors, said = BAD[case]
    path = gguf_with(tmp_path / "bad.gguf", tensors, "llama" if case == "model" else "controlvector")
    with pytest.raises(RecipeError, match=said):
        from_gguf(path)


def test_repengs_layer_0_is_layer_0(tmp_path: Path) -> None:
    back = from_gguf(gguf_with(tmp_path / "mood.gguf", {"direction.0": ONES, "direction.2": ONES * 0}))
    assert (back.name, back.layers) == ("mood", (0,))


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_damaged_files_are_refused_and_never_crash(tmp_path: Path, kind: str) -> None:
    path, read = tmp_path / f"vector.{kind}", from_gguf if kind == "gguf" else from_safetensors
    if kind == "gguf":
        written(RECIPE, tmp_path)
    else:
        to_safetensors(RECIPE, PROFILE, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(RecipeError) as error:
            read(path)
        assert "\n" not in str(error.value)
    rng = np.random.default_rng(0)
    for _ in range(300):
        altered = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 700), size=3):
            altered[place] = rng.integers(0, 256)
        path.write_bytes(altered)
        with contextlib.suppress(
            RecipeError
        ):  # Nothing else may come out. Where it does not show, as in a name, it is read.
            assert isinstance(read(path), Recipe)
    with pytest.raises(RecipeError, match="cannot read"):
        read(tmp_path / "absent")
    with pytest.raises(RecipeError):
        read(tmp_path)


def test_safetensors_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"layer.1": torch.ones(4)}, path)
    with pytest.raises(RecipeError, match="not an exported recipe"):
        from_safetensors(path)
    save_file({"layer.1": torch.ones(4)}, path, metadata={"format": "steersman-vectors", "recipe": "[1]"})
    with pytest.raises(RecipeError, match="not an exported recipe"):
        from_safetensors(path)


def test_the_tensors_of_a_saved_recipe_are_not_overwritten(tmp_path: Path) -> None:
    save_recipe(RECIPE, tmp_path / "pirate.json")
    with pytest.raises(RecipeError, match="another name"):
        to_safetensors(RECIPE, PROFILE, tmp_path / "pirate.safetensors")
    assert load_recipe(tmp_path / "pirate.json") == RECIPE
    for _ in range(2):  # An export may be replaced.
        to_safetensors(RECIPE, PROFILE, tmp_path / "exported.safetensors")


# --- the disk ---


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to write to")
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_a_full_disk_is_named_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / f"vector.{kind}"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _n: "full")
    (tmp_path / f".{path.name}.full.part").symlink_to("/dev/full")
    writers = {"gguf": lambda: written(RECIPE, tmp_path), "safetensors": lambda: to_safetensors(RECIPE, PROFILE, path)}
    with pytest.raises(StorageError, match="disk is full"):
        writers[kind]()
    assert [item.read_bytes() for item in tmp_path.iterdir()] == [b"old"]


# --- llama.cpp itself ---


def steered(model: LanguageModel, recipe: Recipe | None, profile: ModelProfile, ids: list[int]) -> np.ndarray:
    """Logits `(tokens, n_vocab)` of the model under the recipe."""
    plan = BatchPlan([recipe], profile.mean_norms, model.device)
    positions = torch.arange(len(ids))[None]
    everything = torch.ones_like(positions, dtype=torch.bool)
    batch = TokenBatch(torch.tensor([ids]), positions, torch.tensor([[len(ids)]]), everything, torch.ones(1))
    with torch.no_grad(), model.lock, editing(model.blocks, plan.bind(batch, [{}]).hooks):
        logits: torch.Tensor = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.float().numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def in_llama_cpp(folder: Path, model: Path, ids: list[int], runs: list[tuple[Path | None, float]]) -> np.ndarray:
    """Logits `(runs, tokens, n_vocab)` of llama.cpp; skips where there is none to ask."""
    has_it = importlib.util.find_spec("llama_cpp") is not None
    python = sys.executable if has_it else os.environ.get("STEERSMAN_TEST_LLAMA_PYTHON")
    if python is None:
        pytest.skip("no llama_cpp here; set STEERSMAN_TEST_LLAMA_PYTHON to a Python that has llama-cpp-python 0.3.36")
    job = {"model": str(model), "tokens": ids, "out": str(folder / "logits.npy")}
    job["runs"] = [{"vector": str(path) if path else None, "strength": strength} for path, strength in runs]
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("llama_cpp_logits.py")
    done = subprocess.run([python, str(script), str(folder / "job.json")], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    logits: np.ndarray = np.load(folder / "logits.npy")
    return logits


def tiny_gguf(model: LanguageModel, path: Path) -> Path:
    """The tiny Llama as llama.cpp reads it, float32."""
    config, state = model.hf.config, model.hf.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in state.items():
        n_heads = next((count for part, count in heads.items() if part in name), None)
        if n_heads:  # llama.cpp rotates neighbours, transformers halves: interleave the rows of each head.
            tensor = tensor.view(n_heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_llama_cpp_steers_a_float32_model_exactly_as_we_do(tiny: LanguageModel, tmp_path: Path) -> None:
    ids, profile = list(range(20, 60)), measure_profile(tiny)
    everywhere = Where(first_token=True)
    adds = {layer: Add(layer=layer, vector=V, strength=0.5, where=everywhere) for layer in range(N_LAYERS)}
    singles = [Recipe(name="one", edits=(adds[layer],)) for layer in range(1, N_LAYERS)]
    several = Recipe(name="all", edits=(*(adds[layer] for layer in (3, 1)), Add(layer=1, vector=W, where=everywhere)))
    paths: list[tuple[Path | None, float]] = [(None, 0.0)]
    for index, recipe in enumerate([*singles, several]):
        paths.append((tmp_path / f"{index}.gguf", 1.0))
        to_gguf(recipe, profile, N_LAYERS, tmp_path / f"{index}.gguf", "llama")
    base, *found = in_llama_cpp(tmp_path, tiny_gguf(tiny, tmp_path / "tiny.gguf"), ids, paths)
    assert relative(base, steered(tiny, None, profile, ids)) < 1e-5
    for recipe, logits in zip([*singles, several], found, strict=True):
        assert relative(logits, steered(tiny, recipe, profile, ids)) < 1e-5
    # The mapping of layers: one block off is a different thing altogether.
    for layer, logits in enumerate(found[:-1], start=1):
        for wrong in {layer - 1, layer + 1} & set(range(N_LAYERS)):
            vector = raw_vectors(singles[layer - 1], profile)[layer]
            shifted = Recipe(name="off", edits=(Add(layer=wrong, vector=vector, unit="raw", where=everywhere),))
            assert relative(logits, steered(tiny, shifted, profile, ids)) > 0.1


@pytest.mark.model
def test_llama_cpp_steers_the_bundled_model_as_we_do(tmp_path: Path) -> None:
    """llama.cpp computes on the Q4_1 weights with 8-bit activations, we on the same weights in float32."""
    settings, layer, everywhere = Settings.from_env(), 9, Where(first_token=True)
    model = load_model(dtype="float32", settings=settings)
    profile = load_profile(model, settings.cache)
    pirate, plain = (
        read_residuals(model, [model.encode(chat("What is a river?", system))], [layer])[0][layer].mean(0)
        for system in ("You are a pirate. Talk like a pirate, arr!", "You are a helpful assistant.")
    )
    recipe = Recipe(name="pirate", edits=(Add(layer=layer, vector=Vector(pirate - plain), where=everywhere),))
    path = written(recipe, tmp_path, profile)
    answer = "The internet is a big network of computers that talk to each other."
    ids = [*model.encode(chat("What is the internet?")), *model.tokenizer(answer)["input_ids"]]
    source = resolve("default", settings)
    assert source.gguf is not None
    strengths = (0.0, 0.3, 1.0)
    runs: list[tuple[Path | None, float]] = [(None, 0.0), *((path, strength) for strength in strengths)]
    theirs_plain, *theirs = in_llama_cpp(tmp_path, Path(source.folder) / source.gguf, ids, runs)
    ours_plain = steered(model, None, profile, ids)
    assert np.array_equal(theirs[0], theirs_plain)
    assert relative(theirs_plain, ours_plain) < 0.08
    vector = raw_vectors(recipe, profile)[layer]
    for strength, logits in zip(strengths[1:], theirs[1:], strict=True):
        change, errors = logits - theirs_plain, {}
        for block in (layer - 1, layer, layer + 1):
            edit = Add(layer=block, vector=vector, strength=strength, unit="raw", where=everywhere)
            ours = steered(model, Recipe(name="x", edits=(edit,)), profile, ids)
            errors[block] = relative(change, ours - ours_plain)
            if block == layer:
                assert cosine(change, ours - ours_plain) > 0.99
                assert relative(logits, ours) < 0.08
                assert (logits.argmax(-1) == ours.argmax(-1)).mean() > 0.8
        assert errors[layer] < 0.15
        assert min(errors[layer - 1], errors[layer + 1]) > 2.5 * errors[layer]
