"""A plan does to each token of each row what its recipe says, whatever else is in the batch; see `oracle`."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.recipes import D_SAE, N_LAYERS, N_VOCAB, SAE_OF, SAES, WIDTH, few, recipes
from tests.steering.oracle import MEAN_NORMS, Oracle, Row, make_row, play
from torch import Tensor

from steersman.steering.condition import Above, AllOf, AnyOf, Condition, Not, Since, TokenIs
from steersman.steering.edits import KINDS, Add, Clamp, Edit, SaeEdit
from steersman.steering.plan import BatchPlan, Latches, TokenBatch
from steersman.steering.recipe import Recipe
from steersman.steering.target import Direction, Latent
from steersman.steering.vector import Vector
from steersman.steering.where import Constant, Decay, Ramp, Schedule, Where

CPU = torch.device("cpu")
_TRIGGER = 5
_WHERES = {
    "all": Where(),
    "first too": Where(first_token=True),
    "prompt": Where(scope="prompt"),
    "generated": Where(scope="generated", start=1, stop=3),
    "positions": Where(positions=(-1, 2, 6)),
    "tokens": Where(token_ids=(1, _TRIGGER)),
}
_SCHEDULES: dict[str, Schedule] = {
    "constant": Constant(),
    "ramp": Ramp(tokens=3, start=0.5, end=-1.0),
    "decay": Decay(half_life_tokens=1.5, floor=0.1),
}


def _vector(seed: int = 0) -> Vector:
    return Vector(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)))


def _direction(seed: int = 0) -> Direction:
    return Direction(vector=_vector(seed))


def _latent(seed: int = 0) -> Latent:
    return Latent(id=seed, encoder_row=_vector(seed), encoder_bias=0.3, decoder_row=_vector(seed + 100), threshold=0.2)


_OWN: dict[str, dict[str, Any]] = {
    "add": {"vector": _vector()},
    "clamp": {"target": _direction(1), "value": 2.0},
    "scale": {"target": _latent(2), "factor": -1.5},
    "ablate": {"target": _direction(3)},
    "rotate": {"vector": _vector(4), "degrees": 40.0},
    "weight": {"scores": Vector([0.0, 1.0, 2.0, 0.5] * (D_SAE // 4))},
    "swap": {"scores": Vector([0.0, 1.0, -1.0] * (D_SAE // 3)), "keep_error": False},
}


def _edit(kind: str, **fields: Any) -> Edit:
    fields = {"layer": 1, **_OWN[kind], **fields}
    if issubclass(KINDS[kind], SaeEdit):
        fields["sae"] = SAES[fields["layer"]].ref("toy")
    return KINDS[kind](**fields)


def _recipe(*edits: Edit, abort: Condition | None = None) -> Recipe:
    return Recipe(name="test", edits=edits, abort=abort)


def _tokens(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(0, N_VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@st.composite
def _rows(draw: st.DrawFn, steered: st.SearchStrategy[Recipe | None]) -> Row:
    tokens = tuple(draw(st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=7)))
    prompt = draw(st.integers(1, len(tokens)))
    return make_row(
        draw(steered), tokens, prompt, seed=draw(st.integers(0, 99)), gain=draw(st.sampled_from([1.0, 0.5, 0.0]))
    )


@settings(few, max_examples=60)
@given(
    rows=st.lists(_rows(st.none() | recipes()), min_size=1, max_size=3),
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    left=st.booleans(),
)
def test_any_batch_in_any_chunks_does_what_each_recipe_says(rows: list[Row], chunks: list[int], left: bool) -> None:
    outputs, aborted = play(rows, chunks, left=left)
    for row, output, told in zip(rows, outputs, aborted, strict=True):
        expected, token = Oracle(row).run()
        torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)
        passes = [step for step, size in enumerate(_sizes(chunks, len(row.tokens))) for _ in range(size)]
        assert told == (None if token is None else passes[token])


def _sizes(chunks: list[int], total: int) -> list[int]:
    sizes = list(chunks)
    while sum(sizes) < total:
        sizes.append(chunks[-1])
    return sizes


@pytest.mark.parametrize("schedule", _SCHEDULES)
@pytest.mark.parametrize("where", _WHERES)
@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_equals_the_whole_sequence(kind: str, where: str, schedule: str) -> None:
    tokens = (0, 1, 2, _TRIGGER, 1, 4, 1, 2)
    always, gated = (
        _recipe(_edit(kind, where=_WHERES[where], schedule=_SCHEDULES[schedule], when=when))
        for when in (None, Since(item=TokenIs(token_ids=(_TRIGGER,))))
    )
    rows = [make_row(always, tokens, 1), make_row(always, tokens, 5), make_row(gated, tokens, 2)]
    whole, _ = play(rows, [len(tokens)])
    stepped, _ = play(rows, [1])
    mixed, _ = play(rows, [4, 1, 2], left=True)
    for row, expected, *others in zip(rows, whole, stepped, mixed, strict=True):
        torch.testing.assert_close(expected.double(), Oracle(row).run()[0], rtol=1e-4, atol=1e-4)
        for other in others:
            torch.testing.assert_close(other, expected, rtol=1e-6, atol=1e-6)


# --- rows of one batch


def _varied(count: int) -> list[Recipe]:
    """Recipes with several edits each, of all kinds, at all layers, with conditions."""
    gate = Above(layer=0, target=_direction(7), threshold=0.1)
    kinds, wheres, schedules = list(KINDS), list(_WHERES.values()), list(_SCHEDULES.values())
    found = []
    for index in range(count):
        edits = [
            _edit(
                kinds[(index + offset) % len(kinds)],
                layer=offset % N_LAYERS,
                strength=0.5 + 0.1 * index,
                where=wheres[(index + 2 * offset) % len(wheres)],
                schedule=schedules[(index + offset) % 3],
                when=Since(item=gate) if (index + offset) % 4 == 0 else None,
            )
            for offset in range(4)
        ]
        found.append(_recipe(*edits, abort=gate if index % 3 == 0 else None))
    return found


@pytest.mark.parametrize("chunks", [[12], [5, 1]], ids=str)
def test_a_row_among_others_is_bit_for_bit_the_row_alone_in_a_batch_of_the_same_shape(chunks: list[int]) -> None:
    rows = [make_row(recipe, _tokens(12, index), 1 + index % 5, seed=index) for index, recipe in enumerate(_varied(12))]
    together, told = play(rows, chunks)
    for index, row in enumerate(rows):
        others = [row if at == index else make_row(None, other.tokens, 1, seed=at) for at, other in enumerate(rows)]
        alone, told_alone = play(others, chunks)
        assert _bits(together[index]).equal(_bits(alone[index])), f"row {index}"
        assert told[index] == told_alone[index]


def test_groups_of_other_rows_do_not_change_the_order_in_which_a_row_adds_up() -> None:
    # Floating-point sums depend on their order: 1e8 + 1 - 1e8 is 0 in float32, 1e8 - 1e8 + 1 is 1.
    big, small = Vector([1e8] + [0.0] * (WIDTH - 1)), Vector([1.0] + [0.0] * (WIDTH - 1))
    parts = [
        Add(layer=1, vector=big, unit="raw", where=Where(scope="all")),
        Add(layer=1, vector=small, unit="raw", where=Where(scope="generated")),
        Add(layer=1, vector=-big, unit="raw", where=Where(scope="all", token_ids=tuple(range(N_VOCAB)))),
    ]
    seen = set()
    for order in itertools.permutations(parts):
        rows = [
            make_row(_recipe(*order), _tokens(4), 1, seed=1),
            make_row(_recipe(*parts), _tokens(4), 1, seed=2),
        ]
        seen.add(tuple(_bits(play(rows, [4])[0][1]).flatten().tolist()))
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_without_a_recipe_keep_every_bit(dtype: torch.dtype) -> None:
    plan = BatchPlan([None, *_varied(3), None], MEAN_NORMS, CPU, SAE_OF)
    batch = _batch(5, 6)
    hidden = torch.randn(5, 6, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden[0, 1, 0], hidden[0, 2, 1], hidden[4, 3, 2] = -0.0, float("nan"), float("-inf")
    for hook in plan.bind(batch, [{} for _ in range(5)]).hooks.values():
        edited = hook(hidden)
        assert edited is not None
        assert edited.dtype == dtype
        assert _bits(edited[[0, 4]]).equal(_bits(hidden[[0, 4]]))
        assert not torch.equal(edited[1:4], hidden[1:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_no_edit_touches_keep_every_bit(kind: str, dtype: torch.dtype) -> None:
    # A latent may be off at the very tokens that are edited; a direction always reads something.
    own = {"target": _direction(2)} if kind == "scale" else {}
    recipe = _recipe(*(_edit(kind, where=where, **own) for where in (Where(positions=(3,)), Where(scope="generated"))))
    plan = BatchPlan([recipe], MEAN_NORMS, CPU, SAE_OF)
    hidden = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden[0, :, 0] = -0.0
    edited = plan.bind(_batch(1, 6, prompt=5), [{}]).hooks[1](hidden)
    assert edited is not None
    assert _bits(edited[:, [0, 1, 2, 4]]).equal(_bits(hidden[:, [0, 1, 2, 4]]))
    assert not torch.equal(edited[:, [3]], hidden[:, [3]])
    assert not torch.equal(edited[:, [5]], hidden[:, [5]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_gain_of_nothing_keeps_every_bit(kind: str) -> None:
    row = make_row(_recipe(_edit(kind)), _tokens(6), 2, gain=0.0)
    plain = make_row(None, row.tokens, 2)
    assert _bits(play([row], [6])[0][0]).equal(_bits(play([plain], [6])[0][0]))


def test_a_batch_without_recipes_has_no_hooks() -> None:
    assert BatchPlan([None, None], MEAN_NORMS, CPU, SAE_OF).bind(_batch(2, 3), [{}, {}]).hooks == {}


@pytest.mark.parametrize("when", [None, TokenIs(token_ids=(1,)), Above(layer=0, target=_direction(), threshold=0.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_has_no_hook(kind: str, when: Condition | None) -> None:
    recipe = 0.0 * _recipe(_edit(kind, when=when))
    assert BatchPlan([recipe], MEAN_NORMS, CPU, SAE_OF).bind(_batch(1, 3), [{}]).hooks == {}


def test_only_touched_layers_have_a_hook_and_a_layer_that_is_only_read_is_left_alone() -> None:
    gate = Above(layer=0, target=_direction(), threshold=0.0)
    bound = BatchPlan([_recipe(_edit("add", layer=2, when=gate))], MEAN_NORMS, CPU, SAE_OF).bind(_batch(1, 3), [{}])
    assert set(bound.hooks) == {0, 2}
    assert bound.hooks[0](torch.randn(1, 3, WIDTH)) is None


# --- edits of one row


@pytest.mark.parametrize("order", list(itertools.permutations(range(len(KINDS))))[::709], ids=str)
def test_the_order_of_edits_does_not_matter(order: tuple[int, ...]) -> None:
    edits = [_edit(kind) for kind in KINDS]
    rows = [make_row(_recipe(*found), _tokens(6), 2) for found in (edits, [edits[index] for index in order])]
    one, other = play(rows, [6])[0]
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_edits_of_one_row_and_layer_read_the_same_stream_and_add_up() -> None:
    edits = [_edit(kind, layer=N_LAYERS - 1) for kind in KINDS]
    plain = play([make_row(None, _tokens(6), 2)], [6])[0][0]
    changes = [play([make_row(_recipe(edit), _tokens(6), 2)], [6])[0][0] - plain for edit in edits]
    both = play([make_row(_recipe(*edits), _tokens(6), 2)], [6])[0][0]
    torch.testing.assert_close(both - plain, sum(changes, torch.zeros_like(plain)), rtol=1e-5, atol=1e-5)


def test_the_same_edit_twice_is_the_edit_with_twice_the_strength() -> None:
    # Two turns add up as changes, not as angles, so rotate is not among these.
    for kind in set(KINDS) - {"rotate"}:
        twice = make_row(_recipe(_edit(kind), _edit(kind)), _tokens(6), 2)
        double = make_row(_recipe(_edit(kind, strength=2.0)), _tokens(6), 2)
        one, other = (play([row], [6])[0][0] for row in (twice, double))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_low_precision_is_rounded_once() -> None:
    hidden = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    recipe = _recipe(
        *(_edit("add", vector=_vector(seed), unit="raw", where=Where(first_token=True)) for seed in range(9))
    )
    edited = BatchPlan([recipe], MEAN_NORMS, CPU, SAE_OF).bind(_batch(1, 4), [{}]).hooks[1](hidden)
    total = sum((_vector(seed).tensor for seed in range(9)), hidden.float())
    assert edited is not None
    assert torch.equal(edited, total.to(torch.bfloat16))


# --- conditions


def _hot(*tokens: int, length: int = 8, layer: int = 0) -> tuple[Tensor, Direction]:
    """Activations that point along one direction at the tokens named, and away from it elsewhere."""
    axis = torch.eye(WIDTH)[0]
    bases = torch.zeros(N_LAYERS, length, WIDTH)
    bases[:, :, 1] = 1.0
    bases[layer, :, 0] = -1.0
    bases[layer, list(tokens), 0] = 4.0
    return bases, Direction(vector=Vector(axis))


def _touched(recipe: Recipe, bases: Tensor, chunks: list[int], prompt: int = 3, **also: Any) -> list[int]:
    row = Row(tuple(also.get("tokens", [0] * bases.shape[1])), prompt, recipe, bases)
    plain = Row(row.tokens, prompt, None, bases)
    edited, untouched = (play([one], chunks)[0][0][N_LAYERS - 1] for one in (row, plain))
    return (edited != untouched).any(-1).nonzero().flatten().tolist()


@pytest.mark.parametrize("chunks", [[8], [1], [3, 1]], ids=str)
def test_a_condition_switches_at_the_exact_token(chunks: list[int]) -> None:
    bases, axis = _hot(2, 5)
    hot = Above(layer=0, target=axis, threshold=1.0)
    late = Above(layer=1, target=_direction(), threshold=-99.0)
    cases: dict[Condition, list[int]] = {
        hot: [2, 5],
        Not(item=hot): [1, 3, 4, 6, 7],
        Since(item=hot): [2, 3, 4, 5, 6, 7],
        Not(item=Since(item=hot)): [1],
        AllOf(items=(hot, late)): [2, 5],
        AllOf(items=(hot, Not(item=hot))): [],
        AnyOf(items=(hot, TokenIs(token_ids=(1,)))): [2, 4, 5],
        Since(item=AllOf(items=(Since(item=hot), TokenIs(token_ids=(1,))))): [4, 5, 6, 7],
        TokenIs(token_ids=(1, 2)): [4, 6],
    }
    for condition, expected in cases.items():
        recipe = _recipe(_edit("add", layer=2, when=condition))
        assert _touched(recipe, bases, chunks, tokens=[0, 0, 0, 0, 1, 0, 2, 0]) == expected


@pytest.mark.parametrize("measure", ["projection", "cosine"])
def test_the_threshold_is_in_the_unit_of_its_measure(measure: Any) -> None:
    bases, axis = _hot(2, layer=1)
    # At layer 1 the stream is 4 along the axis and 1.5 across: 2 mean norms, or a cosine of 0.936.
    reached = {"projection": 2.0, "cosine": 4 / (4**2 + 1.5**2) ** 0.5}[measure]
    for threshold, expected in ((reached - 1e-3, [2]), (reached + 1e-3, [])):
        gate = Above(layer=1, target=axis, threshold=threshold, measure=measure)
        bases[0, :, 0] = 0.0
        assert _touched(_recipe(_edit("add", layer=2, when=gate)), bases, [8]) == expected


def test_a_condition_reads_its_layer_before_the_edits_there_and_after_those_below() -> None:
    bases, axis = _hot(length=4)
    push = Add(layer=1, vector=axis.vector, strength=100.0, unit="raw")
    same = Above(layer=1, target=axis, threshold=1.0)
    later = Above(layer=2, target=axis, threshold=1.0)
    mark = Vector(torch.eye(WIDTH)[5])
    for gate, expected in ((same, False), (later, True)):
        row = Row((0,) * 4, 2, _recipe(push, Add(layer=2, vector=mark, when=gate)), bases)
        assert bool((play([row], [4])[0][0][2][1:, 5] > 0).all()) is expected


def test_nothing_is_read_at_the_first_token() -> None:
    bases, axis = _hot(0)
    recipe = _recipe(_edit("add", layer=2, when=Since(item=Above(layer=0, target=axis, threshold=1.0))))
    assert _touched(recipe, bases, [8]) == []


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("wrap", ["plain", "since", "any", "not"])
def test_a_condition_never_reads_padding_or_another_row(wrap: str, left: bool) -> None:
    cold, axis = _hot(length=3)
    hot, _ = _hot(*range(8))
    gate: Condition = Above(layer=0, target=axis, threshold=1.0)
    gate = {
        "plain": gate,
        "since": Since(item=gate),
        "any": AnyOf(items=(gate, TokenIs(token_ids=(3,)))),
        "not": Not(item=Not(item=gate)),
    }[wrap]
    steered = _recipe(_edit("add", layer=2, when=gate), abort=gate)
    # In `play`, the activations of padding are 1e4 along the axis.
    rows = [Row((0,) * 3, 2, steered, cold), Row((0,) * 8, 2, steered, hot), Row((0,) * 8, 2, None, hot)]
    outputs, aborted = play(rows, [8], left=left)
    plain = play([Row((0,) * 3, 2, None, cold)], [3])[0][0]
    assert torch.equal(outputs[0], plain)
    assert aborted == [None, 0, None]


@pytest.mark.parametrize("condition", ["above", "token", "since"])
def test_abort_tells_the_row_at_the_exact_pass(condition: str) -> None:
    bases, axis = _hot(5)
    tokens = (0, 0, 0, 0, 0, 3, 0, 0)
    abort: Condition = TokenIs(token_ids=(3,))
    if condition != "token":
        abort = Above(layer=0, target=axis, threshold=1.0)
    if condition == "since":
        abort = Since(item=abort)
    rows = [Row(tokens, 3, Recipe(name="stop", edits=(), abort=abort), bases), Row(tokens, 3, None, bases)]
    assert play(rows, [1])[1] == [5, None]
    assert play(rows, [3, 1])[1] == [3, None]


def test_what_since_has_seen_stays_with_the_request_when_the_batch_changes() -> None:
    bases, axis = _hot(1)
    recipe = _recipe(_edit("add", layer=2, when=Since(item=Above(layer=0, target=axis, threshold=1.0))))
    mine: Latches = {}
    plan = BatchPlan([recipe], MEAN_NORMS, CPU, SAE_OF)
    _through(plan, bases[:, None, :3], _batch(1, 3), [mine])
    fresh: Latches = {}
    moved = BatchPlan([None, recipe, recipe], MEAN_NORMS, CPU, SAE_OF)
    cold = bases[:, None, 3:4].expand(-1, 3, -1, -1)
    edited = _through(moved, cold, _batch(3, 1, offset=3), [{}, mine, fresh])
    plain = _through(BatchPlan([None] * 3, MEAN_NORMS, CPU, SAE_OF), cold, _batch(3, 1, offset=3), [{}, {}, {}])
    assert (edited != plain).flatten(1).any(1).tolist() == [False, True, False]


def test_a_pass_that_holds_only_padding_for_a_row_makes_it_forget_nothing() -> None:
    bases, axis = _hot(1)
    recipe = _recipe(_edit("add", layer=2, when=Since(item=Above(layer=0, target=axis, threshold=1.0))))
    plan, plain = (BatchPlan([steered], MEAN_NORMS, CPU, SAE_OF) for steered in (recipe, None))
    mine: Latches = {}
    _through(plan, bases[:, None, :3], _batch(1, 3), [mine])
    padding = dataclasses.replace(_batch(1, 2), valid=torch.zeros(1, 2, dtype=torch.bool))
    _through(plan, bases[:, None, 3:5], padding, [mine])
    cold = bases[:, None, 3:4]
    edited, untouched = (_through(one, cold, _batch(1, 1, offset=3), [mine]) for one in (plan, plain))
    assert not torch.equal(edited, untouched)


def test_one_condition_may_gate_several_edits_and_abort() -> None:
    bases, axis = _hot(2)
    gate = Since(item=Above(layer=0, target=axis, threshold=1.0))
    shared = _recipe(_edit("add", layer=0, when=gate), _edit("rotate", layer=2, when=gate), abort=gate)
    row = Row((0,) * 8, 3, shared, bases)
    for chunks in ([8], [1]):
        output, told = play([row], chunks)
        expected, token = Oracle(row).run()
        torch.testing.assert_close(output[0].double(), expected, rtol=1e-4, atol=1e-4)
        assert token == 2
        assert told == [0 if chunks == [8] else 2]


def test_clamp_in_residual_norms_is_that_many_mean_norms_of_its_layer() -> None:
    for layer, norm in enumerate(MEAN_NORMS):
        target = _direction(3)
        edit = Clamp(layer=layer, target=target, value=2.0, unit="residual_norm", where=Where(first_token=True))
        output = play([make_row(_recipe(edit), _tokens(5), 2)], [5])[0][0][layer]
        torch.testing.assert_close(target.read(output), torch.full((5,), 2.0 * norm), rtol=1e-5, atol=1e-5)


def _batch(rows: int, seq: int, *, prompt: int = 2, offset: int = 0) -> TokenBatch:
    return TokenBatch(
        token_ids=torch.arange(seq).expand(rows, seq) % N_VOCAB,
        positions=torch.arange(offset, offset + seq).expand(rows, seq),
        prompt_lengths=torch.full((rows, 1), prompt),
        valid=torch.ones(rows, seq, dtype=torch.bool),
        gains=torch.ones(rows),
    )


def _through(plan: BatchPlan, bases: Tensor, batch: TokenBatch, latches: list[Latches]) -> Tensor:
    bound = plan.bind(batch, latches)
    hidden = bases[0]
    for layer in range(N_LAYERS):
        hook = bound.hooks.get(layer)
        edited = hook(bases[layer].contiguous()) if hook else None
        hidden = bases[layer] if edited is None else edited
    bound.commit()
    return hidden


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)
