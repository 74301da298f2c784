from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.sae.toys import D_MODEL, D_SAE, residuals, toy_config, toy_sae, toy_weights
from torch import Tensor

from steersman.errors import DataError, SaeError
from steersman.models.language_model import ModelRef
from steersman.sae.index import build as building
from steersman.sae.index.build import BuildSettings, Built, build
from steersman.sae.index.facts import NO_TOKEN
from steersman.sae.model import SparseAutoencoder
from steersman.sae.shards import ActivationStore, StoreIndex

DEAD = 7
MODEL = ModelRef(id="toy", config_hash="c" * 64, weights_hash="d" * 64)
SMALL = BuildSettings(contexts=3, width=12, samples=4, pool=30)
LENGTHS = ((5, 40, 1, 12, 30), (13, 2, 25), (60, 24))
"""Pieces of each shard."""


class Piece(NamedTuple):
    tokens: list[int]
    acts: Tensor


class Stretch(NamedTuple):
    peak: float
    core: tuple[int, ...]
    tokens: list[int]
    acts: list[float]
    piece: int
    start: int


def _sae(**facts: Any) -> SparseAutoencoder:
    weights = toy_weights("jumprelu")
    weights["b_enc"][DEAD] = -1e4
    return SparseAutoencoder(toy_config("jumprelu", **facts), **weights)


def _store(
    folder: Path, lengths: tuple[tuple[int, ...], ...] = LENGTHS, seed: int = 0, **facts: Any
) -> ActivationStore:
    fresh = StoreIndex(
        model=MODEL,
        layer=3,
        d_model=D_MODEL,
        context_tokens=64,
        shard_tokens=64,
        batch_tokens=64,
        side="train",
        held_out=0.0,
        mix={"all": 1.0},
        seed=0,
        corpus_sha256="e" * 64,
    )
    store = ActivationStore.begin(folder, replace(fresh, **facts))
    made = torch.Generator().manual_seed(seed)
    for shard in lengths:
        n = sum(shard)
        tensors = {
            "activations": residuals(n, seed=int(torch.randint(1 << 30, (), generator=made))).half(),
            # Mostly one token: windows with the same core come up often.
            "tokens": torch.randint(-300, 30, (n,), generator=made, dtype=torch.int32).clamp_(min=0),
            "pieces": torch.repeat_interleave(torch.arange(len(shard), dtype=torch.int32), torch.tensor(shard)),
        }
        store = store.appended(tensors, len(shard))
    return store


def _pieces(sae: SparseAutoencoder, store: ActivationStore) -> list[Piece]:
    found = []
    for number in range(len(store.index.shards)):
        h, (tokens, pieces) = store.read(number), store.read_tokens(number)
        for piece in range(store.index.shards[number].pieces):
            mine = pieces == piece
            found.append(Piece(tokens[mine].tolist(), sae.encode(h[mine])))
    return found


def _stretch(piece: Piece, number: int, row: int, feature: int, width: int) -> Stretch:
    """The window around one token, said plainly."""
    n = len(piece.tokens)
    start = row - 2 * width // 3
    if start + width > n:
        start = n - width
    start = max(start, 0)
    end = min(start + width, n)
    pad = width - (end - start)
    core = tuple(piece.tokens[at] if 0 <= at < n else NO_TOKEN for at in range(row - 5, row + 3))
    return Stretch(
        float(piece.acts[row, feature]),
        core,
        piece.tokens[start:end] + [NO_TOKEN] * pad,
        piece.acts[start:end, feature].tolist() + [0.0] * pad,
        number,
        start,
    )


def _peaks(pieces: list[Piece], feature: int, width: int) -> list[Stretch]:
    """The window of each piece in which the feature fires, strongest first."""
    firing = [(number, piece) for number, piece in enumerate(pieces) if piece.acts[:, feature].max() > 0]
    found = [_stretch(piece, number, int(piece.acts[:, feature].argmax()), feature, width) for number, piece in firing]
    return sorted(found, key=lambda stretch: -stretch.peak)


def _same(tokens: Tensor, activations: Tensor, pieces: Tensor, expected: list[Stretch]) -> None:
    assert tokens.tolist() == [stretch.tokens for stretch in expected]
    torch.testing.assert_close(activations, torch.tensor([stretch.acts for stretch in expected]).reshape(tokens.shape))
    assert pieces.tolist() == [stretch.piece for stretch in expected]


def _equal(one: Built, other: Built) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(one, other, strict=True) for name in a.__slots__]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.fixture(params=["one block", "many blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(building, "_BLOCK_TOKENS", 20)
        monkeypatch.setattr(building, "_CHUNK_ELEMENTS", 16 * D_SAE)


@pytest.mark.usefixtures("_blocks")
def test_statistics_equal_those_of_all_tokens_at_once(tmp_path: Path) -> None:
    sae, store = _sae(), _store(tmp_path)
    acts = torch.cat([piece.acts for piece in _pieces(sae, store)])
    activity = build(sae, [store], SMALL).activity
    assert activity.tokens == store.tokens == len(acts)
    torch.testing.assert_close(activity.density, (acts > 0).float().mean(0))
    torch.testing.assert_close(activity.max_activation, acts.max(0).values)
    torch.testing.assert_close(activity.mean_activation, acts.sum(0) / (acts > 0).sum(0).clamp_min(1))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("width", [3, 12, 24])
def test_contexts_equal_the_plain_search(tmp_path: Path, width: int) -> None:
    sae, store = _sae(), _store(tmp_path)
    pieces = _pieces(sae, store)
    activity = build(sae, [store], replace(SMALL, width=width)).activity
    twins = 0
    for feature in range(D_SAE):
        seen: dict[tuple[int, ...], Stretch] = {}
        peaks = _peaks(pieces, feature, width)
        for stretch in peaks:
            seen.setdefault(stretch.core, stretch)
        twins += len(peaks) - len(seen)
        expected = list(seen.values())[: SMALL.contexts]
        there = activity.context_pieces[feature] >= 0
        assert int(there.sum()) == len(expected)
        _same(
            activity.context_tokens[feature][there],
            activity.context_activations[feature][there],
            activity.context_pieces[feature][there],
            expected,
        )
        assert (activity.context_tokens[feature][~there] == NO_TOKEN).all()
        assert (activity.context_activations[feature][~there] == 0).all()
    assert twins > D_SAE


@pytest.mark.usefixtures("_blocks")
def test_windows_with_the_same_core_are_kept_once(tmp_path: Path) -> None:
    # One text five times, each read a little differently: one context, the strongest.
    sae, h = _sae(), residuals(20, seed=5)
    store = _store(tmp_path, ())
    tensors = {
        "activations": torch.cat([h * scale for scale in (1.0, 1.1, 1.3, 1.2, 1.05)]).half(),
        "tokens": torch.arange(20, dtype=torch.int32).repeat(5),
        "pieces": torch.arange(5, dtype=torch.int32).repeat_interleave(20),
    }
    store = store.appended(tensors, 5)
    activity, evidence = build(sae, [store], SMALL)
    pieces = _pieces(sae, store)
    for feature in activity.density.nonzero().squeeze(1).tolist():
        cores = {stretch.core for stretch in _peaks(pieces, feature, SMALL.width)}
        assert (activity.context_pieces[feature] >= 0).sum() == min(len(cores), SMALL.contexts)
    assert (activity.context_pieces >= 0).sum(1).max() < SMALL.contexts
    assert (evidence.sample_pieces >= 0).sum(1).max() == SMALL.samples


def test_the_strongest_token_stands_two_thirds_in_and_windows_stay_in_their_piece(tmp_path: Path) -> None:
    sae = _sae()
    store = _store(tmp_path, ((30,), (30,), (30,)))
    for number in range(3):
        tokens, _ = store.read_tokens(number)
        assert len(tokens) == 30
    activity = build(sae, [store], replace(SMALL, contexts=1)).activity
    pieces = _pieces(sae, store)
    places = set()
    for feature in activity.density.nonzero().squeeze(1).tolist():
        row = int(pieces[int(activity.context_pieces[feature, 0])].acts[:, feature].argmax())
        place = int(activity.context_activations[feature, 0].argmax())
        assert place == (row if row < 8 else 8 if row <= 30 - 4 else row - 18)
        places.add(place)
    assert len(places) > 2


@pytest.mark.usefixtures("_blocks")
def test_samples_are_windows_of_different_pieces(tmp_path: Path) -> None:
    sae, store = _sae(), _store(tmp_path)
    pieces = _pieces(sae, store)
    evidence = build(sae, [store], SMALL).evidence
    assert len(evidence) == D_SAE
    for feature in range(D_SAE):
        by_piece = {stretch.piece: stretch for stretch in _peaks(pieces, feature, SMALL.width)}
        samples = evidence.samples(feature)
        assert len(samples) == min(len(by_piece), SMALL.samples)
        numbers = evidence.sample_pieces[feature][: len(samples)]
        assert len(set(numbers.tolist())) == len(samples)
        expected = sorted((by_piece[number] for number in numbers.tolist()), key=lambda stretch: -stretch.peak)
        _same(samples.tokens, samples.activations, numbers, expected)
        assert evidence.sample_starts[feature][: len(samples)].tolist() == [stretch.start for stretch in expected]
        assert (evidence.sample_pieces[feature][len(samples) :] == -1).all()


def test_samples_are_drawn_evenly(tmp_path: Path) -> None:
    sae, store = _sae(), _store(tmp_path, ((9,) * 16,))
    pieces = _pieces(sae, store)
    firing = torch.stack([(piece.acts > 0).any(0) for piece in pieces]).float()
    drawn, expected = torch.zeros(len(pieces)), torch.zeros(len(pieces))
    for seed in range(40):
        numbers = build(sae, [store], replace(SMALL, samples=3, seed=seed)).evidence.sample_pieces
        drawn += torch.bincount(numbers[numbers >= 0], minlength=len(pieces))
        expected += (firing * (3 / firing.sum(0).clamp_min(3))).sum(1)
    assert ((drawn - expected).abs() < 5 * expected.sqrt()).all()
    assert drawn.sum() == round(float(expected.sum()))


@pytest.mark.usefixtures("_blocks")
def test_the_pool_knows_all_that_fires_in_it(tmp_path: Path) -> None:
    sae, store = _sae(), _store(tmp_path)
    pieces = _pieces(sae, store)
    evidence = build(sae, [store], SMALL).evidence
    assert evidence.pool_tokens.shape == (SMALL.pool, SMALL.width)
    dense = torch.zeros(SMALL.pool, D_SAE)
    for feature in range(D_SAE):
        windows, values = evidence.firing(feature)
        assert windows.tolist() == sorted(set(windows.tolist()))
        dense[windows.long(), feature] = values
    for window in range(SMALL.pool):
        piece, start = pieces[int(evidence.pool_pieces[window])], int(evidence.pool_starts[window])
        tokens = piece.tokens[start : start + SMALL.width]
        assert evidence.pool_tokens[window].tolist() == tokens + [NO_TOKEN] * (SMALL.width - len(tokens))
        torch.testing.assert_close(dense[window], piece.acts[start : start + SMALL.width].max(0).values)


def test_a_pool_is_never_larger_than_the_texts(tmp_path: Path) -> None:
    store = _store(tmp_path, ((3, 4),))
    assert build(_sae(), [store], SMALL).evidence.pool_pieces.tolist() == [0] * 3 + [1] * 4


def test_blocks_and_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, store = _sae(), _store(tmp_path)
    whole = build(sae, [store], SMALL)
    monkeypatch.setattr(building, "_BLOCK_PAIRS", 50)
    pieces = build(sae, [store], SMALL)
    for name in ("context_tokens", "context_pieces", "density"):
        assert torch.equal(getattr(whole.activity, name), getattr(pieces.activity, name))
    for name in ("sample_tokens", "sample_pieces", "pool_tokens", "firing_windows"):
        assert torch.equal(getattr(whole.evidence, name), getattr(pieces.evidence, name))


def test_a_pass_is_the_same_for_a_seed(tmp_path: Path) -> None:
    sae, store = _sae(), _store(tmp_path)
    one = build(sae, [store], SMALL)
    assert _equal(one, build(sae, [store], SMALL))
    other = build(sae, [store], replace(SMALL, seed=1))
    assert torch.equal(one.activity.context_tokens, other.activity.context_tokens)
    assert not torch.equal(one.evidence.sample_pieces, other.evidence.sample_pieces)
    assert not torch.equal(one.evidence.pool_tokens, other.evidence.pool_tokens)


def test_several_stores_are_read_as_one(tmp_path: Path) -> None:
    sae = _sae()
    whole = _store(tmp_path / "whole")
    pieces, split = _pieces(sae, whole), []
    for number in range(3):
        store = ActivationStore.begin(tmp_path / str(number), replace(whole.index, shards=()))
        tokens, ids = whole.read_tokens(number)
        tensors = {"activations": whole.read(number), "tokens": tokens, "pieces": ids}
        split.append(store.appended(tensors, len(LENGTHS[number])))
    assert len(pieces) == sum(map(len, LENGTHS))
    assert _equal(build(sae, [whole], SMALL), build(sae, split, SMALL))


def test_a_limit_takes_a_share_of_each_store(tmp_path: Path) -> None:
    sae = _sae()
    stores = [_store(tmp_path / "a", ((50,), (50,))), _store(tmp_path / "b", ((20, 30),), seed=1)]
    seen: list[tuple[int, int]] = []
    built = build(sae, stores, replace(SMALL, tokens=90, pool=90), progress=lambda *state: seen.append(state))
    assert built.activity.tokens == 90
    assert torch.bincount(built.evidence.pool_pieces).tolist() == [50, 10, 20, 10]
    assert seen[-1] == (90, 90)
    assert seen == sorted(seen)


def test_a_dead_feature_has_nothing(tmp_path: Path) -> None:
    activity, evidence = build(_sae(), [_store(tmp_path)], SMALL)
    assert activity.density[DEAD] == activity.mean_activation[DEAD] == activity.max_activation[DEAD] == 0
    assert (activity.context_tokens[DEAD] == NO_TOKEN).all()
    assert len(evidence.samples(DEAD)) == len(evidence.firing(DEAD)[0]) == 0
    assert (activity.density > 0).sum() > D_SAE / 2


def test_texts_in_which_nothing_fires_are_no_error(tmp_path: Path) -> None:
    weights = toy_weights("relu")
    weights["b_enc"].fill_(-1e4)
    activity, evidence = build(SparseAutoencoder(toy_config("relu"), **weights), [_store(tmp_path)], SMALL)
    assert not activity.density.any()
    assert len(evidence.firing_windows) == 0


def test_a_topk_sae_is_read_too(tmp_path: Path) -> None:
    sae, store = toy_sae("topk"), _store(tmp_path)
    acts = torch.cat([piece.acts for piece in _pieces(sae, store)])
    torch.testing.assert_close(build(sae, [store], SMALL).activity.density, (acts > 0).float().mean(0))


def test_stores_of_something_else_are_refused(tmp_path: Path) -> None:
    sae = _sae(model=MODEL)
    other = replace(MODEL, weights_hash="f" * 64)
    for name, facts, message in (
        ("layer", {"layer": 2}, "reads layer 3, not layer 2"),
        ("width", {"d_model": 99}, "of width 99, the SAE reads 12"),
        ("model", {"model": other}, "was trained on toy"),
    ):
        with pytest.raises(SaeError, match=message):
            build(sae, [_store(tmp_path / name, (), **facts)], SMALL)
    stores = [_store(tmp_path / "one", ((5,),)), _store(tmp_path / "two", ((5,),), model=other)]
    with pytest.raises(SaeError, match="of two models"):
        build(_sae(), stores, SMALL)


def test_no_activations_are_refused(tmp_path: Path) -> None:
    for stores in ([], [_store(tmp_path, ())]):
        with pytest.raises(DataError, match="no activations"):
            build(_sae(), stores, SMALL)


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = _store(tmp_path, ((4,),))
    tensors = {
        "activations": torch.full((2, D_MODEL), torch.nan).half(),
        "tokens": torch.zeros(2, dtype=torch.int32),
        "pieces": torch.zeros(2, dtype=torch.int32),
    }
    with pytest.raises(DataError, match=r"shard-00001.*not finite"):
        build(_sae(), [store.appended(tensors, 1)], SMALL)


@pytest.mark.parametrize("name", ["contexts", "width", "samples", "pool", "tokens"])
def test_settings_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(SaeError, match=f"{name} of an index must be 1 or more"):
        BuildSettings(**{name: 0})


def test_evidence_of_no_such_feature_is_refused(tmp_path: Path) -> None:
    evidence = build(_sae(), [_store(tmp_path, ((5,),))], SMALL).evidence
    for ask in (evidence.samples, evidence.firing):
        with pytest.raises(SaeError, match=f"feature {D_SAE} does not exist"):
            ask(D_SAE)
