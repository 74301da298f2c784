"""Residuals equal transformers' own, whatever the batch; profiles are measured once and never trusted when damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import ARCHITECTURES, CONTEXT, D_MODEL, N_LAYERS, tiny_model

from steersman.errors import DataError, ModelError, SteersmanError, StorageError
from steersman.models import residuals
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import ModelProfile, load_profile, measure_profile, profile_texts, read_residuals


def _sequences(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 260, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_a_batch_with_padding_reads_what_transformers_reads_alone(kind: str) -> None:
    model = tiny_model(kind)
    # Longer than the sliding windows of eight, of very different lengths, in no order.
    sequences = _sequences([5, 21, 2, 13, 30])
    together = read_residuals(model, sequences, [0, 2], skip_first=False)
    for ids, read in zip(sequences, together, strict=True):
        states = model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in (0, 2):
            torch.testing.assert_close(read[layer], states[layer + 1][0], rtol=1e-4, atol=1e-4)


def test_every_layer_token_and_sequence_is_in_its_place(tiny: LanguageModel) -> None:
    sequences = _sequences([4, 9, 6])
    found = read_residuals(tiny, sequences, [3, 1])
    assert [set(one) for one in found] == [{1, 3}] * 3
    assert [one[1].shape for one in found] == [(3, D_MODEL), (8, D_MODEL), (5, D_MODEL)]
    with_first = read_residuals(tiny, sequences, [3, 1], skip_first=False)
    for one, other in zip(found, with_first, strict=True):
        assert all(torch.equal(one[layer], other[layer][1:]) for layer in (1, 3))


def test_results_do_not_depend_on_how_they_are_batched(tiny: LanguageModel) -> None:
    sequences = _sequences([3, 30, 8, 8, 17, 2])
    reference = read_residuals(tiny, sequences, [2], batch_tokens=1)
    for batch_tokens in (16, 40, 10_000):
        for one, other in zip(reference, read_residuals(tiny, sequences, [2], batch_tokens=batch_tokens), strict=True):
            torch.testing.assert_close(one[2], other[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 31, 64, 100])
def test_no_batch_is_larger_than_allowed_unless_one_sequence_is(tiny: LanguageModel, batch_tokens: int) -> None:
    shapes: list[tuple[int, int]] = []
    embed = tiny.hf.get_input_embeddings()
    counter = embed.register_forward_pre_hook(lambda _m, args: shapes.append(tuple(args[0].shape)))
    read_residuals(tiny, _sequences([3, 30, 8, 8, 17, 2, 2, 2]), [0], batch_tokens=batch_tokens)
    counter.remove()
    assert sum(rows for rows, _ in shapes) == 8
    assert all(rows * width <= batch_tokens or rows == 1 for rows, width in shapes)


def test_results_own_their_memory_and_carry_no_gradient() -> None:
    model = tiny_model()
    model.hf.requires_grad_(True)
    for one in read_residuals(model, _sequences([3, 30]), [0]):
        assert not one[0].requires_grad
        assert one[0].untyped_storage().nbytes() == one[0].numel() * 4


def test_the_number_format_is_the_models() -> None:
    assert read_residuals(tiny_model(dtype=torch.bfloat16), [[1, 2]], [0])[0][0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("sequences", "layers", "skip_first"),
    [([], [0], True), ([[5, 6]], [], True), ([[5, 6], []], [0], False), ([[5, 6], [5]], [0], True)],
    ids=["no sequence", "no layer", "an empty one", "only a first token"],
)
def test_nothing_to_read_is_a_data_error(
    tiny: LanguageModel, sequences: list[list[int]], layers: list[int], skip_first: bool
) -> None:
    with pytest.raises(DataError):
        read_residuals(tiny, sequences, layers, skip_first=skip_first)


@pytest.mark.parametrize("layer", [-1, N_LAYERS])
def test_a_missing_layer_is_a_model_error(tiny: LanguageModel, layer: int) -> None:
    with pytest.raises(ModelError):
        read_residuals(tiny, [[5, 6]], [0, layer])


def test_a_sequence_longer_than_the_model_can_read_is_refused() -> None:
    with pytest.raises(SteersmanError):
        read_residuals(tiny_model("gpt2"), [[5] * (CONTEXT + 1)], [0])


def test_one_token_may_be_read_when_the_first_is_not_skipped(tiny: LanguageModel) -> None:
    assert read_residuals(tiny, [[5]], [0], skip_first=False)[0][0].shape == (1, D_MODEL)


# --- profile


@torch.no_grad()
def test_the_profile_is_the_mean_norm_without_first_tokens(tiny: LanguageModel) -> None:
    norms = []
    for text in profile_texts():
        ids = torch.tensor([tiny.tokenizer(text)["input_ids"][:256]])
        states = tiny.hf(input_ids=ids, output_hidden_states=True).hidden_states
        norms.append(torch.stack([state[0, 1:].norm(dim=-1) for state in states[1:N_LAYERS]]))
    expected = torch.cat(norms, dim=1).mean(1).tolist()
    profile = measure_profile(tiny)
    assert profile.weights_hash == tiny.ref.weights_hash
    assert len(profile.mean_norms) == N_LAYERS
    assert profile.mean_norms[: N_LAYERS - 1] == pytest.approx(expected, rel=1e-4)


def test_the_shipped_text_is_several_passages() -> None:
    texts = profile_texts()
    assert len(texts) >= 5
    assert all(len(text) > 40 for text in texts)


def test_a_profile_is_measured_once(tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_profile(tiny, tmp_path)
    monkeypatch.setattr(residuals, "measure_profile", _never)
    assert load_profile(tiny, tmp_path) == first
    assert first.weights_hash == tiny.ref.weights_hash


def test_models_do_not_share_a_profile(tiny: LanguageModel, tmp_path: Path) -> None:
    other = tiny_model(seed=1)
    assert load_profile(tiny, tmp_path) != load_profile(other, tmp_path)
    assert len(list((tmp_path / "profiles").iterdir())) == 2


def _facts(model: LanguageModel, **changed: Any) -> str:
    good = {"weights_hash": model.ref.weights_hash, "mean_norms": [1.0] * N_LAYERS}
    return json.dumps({**good, **changed})


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        "\x00\x00",
        {"weights_hash": "another"},
        {"mean_norms": None},
        {"mean_norms": [1.0]},
        {"mean_norms": ["a"] * N_LAYERS},
        {"mean_norms": [float("nan")] * N_LAYERS},
        {"mean_norms": [0.0] * N_LAYERS},
        {"mean_norms": [-1.0] * N_LAYERS},
    ],
    ids=repr,
)
def test_a_damaged_profile_is_measured_again(
    tiny: LanguageModel, tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ModelProfile(tiny.ref.weights_hash, (2.0, 3.0, 4.0, 5.0))
    monkeypatch.setattr(residuals, "measure_profile", lambda _model: expected)
    path = tmp_path / "profiles" / f"{tiny.ref.weights_hash[:32]}.json"
    path.parent.mkdir()
    path.write_text(damage if isinstance(damage, str) else _facts(tiny, **damage))
    assert load_profile(tiny, tmp_path) == expected
    assert json.loads(path.read_text())["mean_norms"] == list(expected.mean_norms)


def test_an_undamaged_profile_is_believed(tiny: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "profiles" / f"{tiny.ref.weights_hash[:32]}.json"
    path.parent.mkdir()
    path.write_text(_facts(tiny))
    assert load_profile(tiny, tmp_path).mean_norms == (1.0,) * N_LAYERS


def test_a_cache_that_cannot_be_written_is_a_storage_error(tiny: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(StorageError):
        load_profile(tiny, tmp_path / "cache")


def _never(_model: LanguageModel) -> None:
    pytest.fail("measured a second time")


@pytest.mark.model
def test_the_bundled_models_first_token_is_no_part_of_its_profile(bundled: LanguageModel) -> None:
    norms = measure_profile(bundled).mean_norms
    assert len(norms) == bundled.n_layers == 30
    assert norms[0] < norms[15] < norms[29]
    ids = bundled.tokenizer(profile_texts()[0])["input_ids"][:50]
    sink = read_residuals(bundled, [ids], [15], skip_first=False)[0][15][0].float().norm()
    assert norms[15] < sink / 20
