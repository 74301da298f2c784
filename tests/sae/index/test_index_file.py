from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from steersman.errors import SaeError, StorageError
from steersman.files import sha256_file
from steersman.models.language_model import ModelRef
from steersman.sae.config import SaeRef
from steersman.sae.index.facts import NO_TOKEN, FeatureIndex, IndexFacts, Label
from steersman.sae.index.file import FACTS_FILE, TENSORS_FILE, load_index, save_index

N, C, W, VOCABULARY = 50, 3, 7, 49152
SAE = SaeRef(id="toy", layer=3, weights_hash="a" * 64)
FACTS = IndexFacts(
    sae=SAE,
    model=ModelRef(id="tiny", config_hash="b" * 64, weights_hash="c" * 64),
    tokens=1000,
    sources={"chat": 0.25, "prose": 0.75},
    encoder="minilm",
)


def _index(n: int = N, *, vocabulary: int = VOCABULARY, embeddings: bool = True, seed: int = 0) -> FeatureIndex:
    made = torch.Generator().manual_seed(seed)

    def ids(end: int, *shape: int) -> Tensor:
        return torch.randint(end, shape, generator=made, dtype=torch.int32)

    largest = torch.rand(n, generator=made) * 9
    acts = torch.rand(n, C, W, generator=made) * largest[:, None, None]
    acts[torch.rand(acts.shape, generator=made) < 0.5] = 0
    acts[0, 0, 0] = largest[0] * 1e-6
    tokens = ids(vocabulary, n, C, W)
    tokens[1, 0, 4:] = NO_TOKEN
    tokens[2], acts[2], largest[2] = NO_TOKEN, 0, 0
    rows = F.normalize(torch.randn(2, n, 16, generator=made), dim=-1)
    rows[:, 2] = 0
    labels = [Label(text=f"label {i} é", score=i / n) for i in range(n)]
    labels[3] = Label(text="mine", origin="user", missing="not measured")
    return FeatureIndex(
        facts=FACTS if embeddings else replace(FACTS, encoder=None),
        density=largest / 90,
        mean_activation=largest / 3,
        max_activation=largest,
        context_tokens=tokens,
        context_activations=acts,
        promoted=ids(vocabulary, n, 4),
        suppressed=ids(vocabulary, n, 4),
        neighbours=ids(n, n, 5),
        cosines=torch.rand(n, 5, generator=made) * 2 - 1,
        labels=(*labels[:2], None, *labels[3:]),
        label_embeddings=rows[0] if embeddings else None,
        context_embeddings=rows[1] if embeddings else None,
    )


def _equal(one: FeatureIndex, other: FeatureIndex) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in one.__slots__]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 200_000])
@pytest.mark.parametrize("embeddings", [True, False])
def test_an_index_comes_back_within_its_rounding(tmp_path: Path, vocabulary: int, embeddings: bool) -> None:
    index = _index(vocabulary=vocabulary, embeddings=embeddings)
    save_index(index, tmp_path)
    loaded = load_index(tmp_path, SAE, n_vocab=vocabulary)
    for name in ("facts", "labels"):
        assert getattr(loaded, name) == getattr(index, name)
    for name in (
        "density",
        "mean_activation",
        "max_activation",
        "context_tokens",
        "promoted",
        "suppressed",
        "neighbours",
    ):
        assert torch.equal(getattr(loaded, name), getattr(index, name))
    acts, largest = loaded.context_activations, index.max_activation[:, None, None]
    assert torch.equal(acts > 0, index.context_activations > 0)
    assert ((acts - index.context_activations).abs() <= largest / 255).all()
    torch.testing.assert_close(loaded.cosines, index.cosines, rtol=2**-11, atol=1e-7)
    for name in ("label_embeddings", "context_embeddings"):
        rows, read = getattr(index, name), getattr(loaded, name)
        assert (rows is None) == (read is None) == (not embeddings)
        if rows is not None:
            assert read.dtype == torch.float16
            assert ((read.float() - rows).abs() <= rows.abs().amax(1, keepdim=True) * (1 / 254 + 2**-11)).all()


def test_what_was_read_is_written_again_without_loss(tmp_path: Path) -> None:
    save_index(_index(embeddings=False), tmp_path / "a")
    once = load_index(tmp_path / "a")
    save_index(once, tmp_path / "b")
    assert _equal(once, load_index(tmp_path / "b"))
    assert (tmp_path / "a" / TENSORS_FILE).read_bytes() == (tmp_path / "b" / TENSORS_FILE).read_bytes()


def test_an_index_of_the_largest_16_bit_token(tmp_path: Path) -> None:
    for largest in (65533, 65534, 65535, 65536):
        index = _index()
        index.promoted[0, 0] = largest
        index.context_tokens[0, 0, 0] = largest
        save_index(index, tmp_path)
        assert _equal(replace(load_index(tmp_path), **_rounded(index)), index)


def _rounded(index: FeatureIndex) -> dict[str, Any]:
    names = ("context_activations", "cosines", "label_embeddings", "context_embeddings")
    return {name: getattr(index, name) for name in names}


def test_an_index_of_the_shipped_size_stays_small(tmp_path: Path) -> None:
    n, made = 8192, torch.Generator().manual_seed(0)
    small = _index(n)
    index = replace(
        small,
        context_tokens=torch.randint(VOCABULARY, (n, 8, 24), generator=made),
        context_activations=torch.zeros(n, 8, 24),
        promoted=torch.randint(VOCABULARY, (n, 10), generator=made),
        suppressed=torch.randint(VOCABULARY, (n, 10), generator=made),
        neighbours=torch.randint(n, (n, 8), generator=made),
        cosines=torch.rand(n, 8, generator=made),
        label_embeddings=torch.rand(n, 384, generator=made),
        context_embeddings=torch.rand(n, 384, generator=made),
        labels=tuple(Label(text="x" * 40, score=1 / 3) for _ in range(n)),
    )
    save_index(index, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 13_000_000


# --- what is refused


def _rewritten(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """The tensors changed behind our back, and the hash with them."""
    path, facts = folder / TENSORS_FILE, folder / FACTS_FILE
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    _edited(facts, lambda raw: raw.update(tensors_sha256=sha256_file(path)))


def _edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")


def _put(name: str, value: float, *place: int) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][place] = value

    return change


def _replaced(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: make(tensors[name]).contiguous()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("density", torch.nan, 4), "density holds values that are NaN"),
        (_put("density", -0.1, 4), "density holds values that are negative"),
        (_put("density", 1.1, 4), "density holds values that are negative or too large"),
        (_put("max_activation", torch.inf, 4), "max_activation holds values that are NaN or infinite"),
        (_put("mean_activation", -1, 4), "mean_activation holds values that are negative"),
        (_put("cosines", torch.nan, 4, 0), "cosines holds values that are NaN"),
        (_put("label_embeddings_scale", torch.nan, 4), "label_embeddings holds values that are NaN"),
        (_put("context_embeddings_scale", 1e9, 4), "context_embeddings holds values that are NaN or infinite"),
        (_put("neighbours", N, 4, 0), f"neighbours names {N}, which does not exist"),
        (_put("promoted", VOCABULARY, 4, 0), f"promoted names {VOCABULARY}, which does not exist"),
        (_put("suppressed", 65535, 4, 0), "suppressed names -1, which does not exist"),
        (_put("context_tokens", VOCABULARY, 4, 0, 0), "context_tokens names 49152"),
        (
            _replaced("context_tokens", lambda ids: torch.full(ids.shape, -9, dtype=torch.int32)),
            "context_tokens names -9",
        ),
        (_replaced("density", lambda values: values[:-1]), r"density has shape \(49,\), expected \(50,\)"),
        (_replaced("suppressed", lambda ids: ids[:, 1:]), r"suppressed has shape \(50, 3\), expected \(50, 4\)"),
        (_replaced("context_activations", lambda acts: acts[:, :2]), "context_activations has shape"),
        (_replaced("context_tokens", lambda ids: ids[:, 0]), "context_tokens has shape"),
        (_replaced("neighbours", lambda ids: ids[:, 0]), "has shape"),
        (_replaced("label_embeddings", lambda rows: rows[:9]), "label_embeddings has shape"),
        (_replaced("label_embeddings_scale", lambda rows: rows[:, None]), "label_embeddings_scale has shape"),
        (_replaced("density", torch.Tensor.half), "density is torch.float16, expected torch.float32"),
        (lambda tensors: tensors.pop("cosines"), "lacks tensor 'cosines'"),
        (lambda tensors: tensors.pop("label_embeddings"), "unknown tensor 'label_embeddings_scale'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unknown tensor 'extra'"),
    ],
)
def test_tensors_that_cannot_be_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    save_index(_index(), tmp_path)
    _rewritten(tmp_path, change)
    with pytest.raises(SaeError, match=message):
        load_index(tmp_path, n_vocab=VOCABULARY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["facts"].update(format=2), "not of index format 1"),
        (lambda raw: (raw["facts"].update(format=2, more=1), raw.update(other=1)), r"format 1 \(it says 2\)"),
        (lambda raw: raw.update(lables=[]), "unknown field 'lables'; did you mean 'labels'"),
        (lambda raw: raw["facts"].update(sourcs={}), "unknown field 'facts.sourcs'; did you mean 'sources'"),
        (lambda raw: raw["labels"][5].update(scor=1), "unknown field 'labels.5.scor'; did you mean 'score'"),
        (lambda raw: raw["labels"][5].update(score=7), "score lies between 0 and 1"),
        (lambda raw: raw["labels"][5].update(origin="me"), "labels.5.origin"),
        (lambda raw: raw.pop("labels"), "has no 'labels'"),
        (lambda raw: raw["labels"].pop(), "has shape"),
        (lambda raw: raw["facts"]["sae"].pop("layer"), "has no 'facts.sae.layer'"),
        (lambda raw: raw.update(tensors_sha256="0" * 64), "damaged, or of another index"),
    ],
)
def test_facts_that_cannot_be_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    save_index(_index(), tmp_path)
    _edited(tmp_path / FACTS_FILE, change)
    with pytest.raises(SaeError, match=message):
        load_index(tmp_path)


def test_the_format_is_always_written(tmp_path: Path) -> None:
    save_index(_index(), tmp_path)
    assert json.loads((tmp_path / FACTS_FILE).read_bytes())["facts"]["format"] == 1


def test_a_missing_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=r"no feature index.*steersman sae index"):
        load_index(tmp_path)
    save_index(_index(), tmp_path)
    (tmp_path / TENSORS_FILE).unlink()
    with pytest.raises(SaeError, match="cannot read"):
        load_index(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_facts_that_are_no_json_of_ours_are_refused(tmp_path: Path, text: bytes) -> None:
    save_index(_index(), tmp_path)
    (tmp_path / FACTS_FILE).write_bytes(text)
    with pytest.raises(SaeError, match=FACTS_FILE):
        load_index(tmp_path)


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    save_index(_index(), tmp_path)
    path = tmp_path / TENSORS_FILE
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(SaeError, match="is damaged"):
        load_index(tmp_path)


def test_an_index_of_another_sae_is_refused(tmp_path: Path) -> None:
    save_index(_index(), tmp_path)
    assert len(load_index(tmp_path, replace(SAE, id="another name"))) == N
    with pytest.raises(SaeError, match="index of another SAE"):
        load_index(tmp_path, replace(SAE, weights_hash="0" * 64))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("density", torch.nan, "density holds values that are NaN"),
        ("context_activations", torch.nan, "context_activations do not lie"),
        ("context_activations", 1e9, "context_activations do not lie"),
        ("context_activations", -1.0, "context_activations do not lie"),
        ("label_embeddings", torch.nan, "label_embeddings holds values that are NaN"),
        ("context_embeddings", torch.inf, "context_embeddings holds values that are NaN"),
        ("cosines", torch.inf, "cosines holds values that are NaN"),
        ("neighbours", -1, "neighbours names -1"),
        ("context_tokens", -2, "context_tokens names -2"),
    ],
)
def test_a_bad_index_is_never_written(tmp_path: Path, name: str, value: float, message: str) -> None:
    index = _index()
    getattr(index, name).view(-1)[7] = value
    with pytest.raises(SaeError, match=message):
        save_index(index, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_tensors_that_do_not_fit_are_never_written(tmp_path: Path) -> None:
    index = _index()
    with pytest.raises(SaeError, match="cosines has shape"):
        save_index(replace(index, cosines=index.cosines[:, 1:]), tmp_path)


@pytest.mark.parametrize("fails", [FACTS_FILE, TENSORS_FILE])
def test_an_interrupted_write_leaves_the_old_index_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    save_index(_index(), tmp_path)
    before = load_index(tmp_path)
    write = {FACTS_FILE: "write_text", TENSORS_FILE: "write_bytes"}[fails]
    real = getattr(Path, write)

    def full(path: Path, data: Any, **options: Any) -> int:
        if fails in path.name:
            real(path, data[: len(data) // 2], **options)
            raise OSError(28, "No space left on device")
        return int(real(path, data, **options))

    monkeypatch.setattr(Path, write, full)
    with pytest.raises(StorageError, match="the disk is full"):
        save_index(_index(seed=1), tmp_path)
    monkeypatch.undo()
    assert _equal(before, load_index(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {FACTS_FILE, TENSORS_FILE}
