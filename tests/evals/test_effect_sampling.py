"""Laws of sampling and scales: what the engine would write, what the plain model would read, whatever else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.evals.effects_rig import LAYER, SETTINGS, profile_of, toy

from steersman.engine.engine import Engine
from steersman.engine.request import Request, Sampling
from steersman.engine.sampling import choose
from steersman.errors import DataError
from steersman.evals.effects.facts import EffectSettings
from steersman.evals.effects.sampling import Sampler, choose_rows, top_of_rows
from steersman.evals.effects.scale import GRID, CrossEntropyScale, plain_pieces
from steersman.evals.effects.vectors import Probes
from steersman.models.language_model import LanguageModel
from steersman.models.residuals import read_residuals
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.steering.vector import Vector

VECTORS = [probe.vector for probe in Probes(toy(), 0).first(4)]


def sampler_of(tiny: LanguageModel, settings: EffectSettings = SETTINGS) -> Sampler:
    return Sampler(tiny, LAYER, profile_of(tiny).mean_norms, settings)


def test_greedy_rows_are_what_the_engine_writes(tiny: LanguageModel) -> None:
    sampler = sampler_of(tiny, replace(SETTINGS, temperature=0.0))
    written = sampler.write([(VECTORS[0], 0.8), None, (VECTORS[1], 1.5)], [1, 2, 3])
    engine = Engine(tiny, profile=profile_of(tiny))
    greedy = Sampling(max_tokens=SETTINGS.tokens, ignore_eos=True)
    for edit, found in zip([(VECTORS[0], 0.8), None, (VECTORS[1], 1.5)], written, strict=True):
        recipe = edit and Recipe(name="it", edits=(Add(layer=LAYER, vector=edit[0], strength=edit[1]),))
        results = engine.generate([Request(prompt=text, recipe=recipe, sampling=greedy) for text in SETTINGS.prompts])
        for prompt, result in enumerate(results):
            for sample in range(SETTINGS.samples):
                assert tuple(found.ids[prompt, sample].tolist()) == result.token_ids


def test_residuals_are_what_the_plain_model_reads_in_the_steered_text(tiny: LanguageModel) -> None:
    (written,) = sampler_of(tiny).write([(VECTORS[2], 1.0)], [7])
    for prompt, text in enumerate(SETTINGS.prompts):
        ids = tiny.encode(text)
        for sample in range(SETTINGS.samples):
            whole = [*ids, *written.ids[prompt, sample].tolist()]
            (read,) = read_residuals(tiny, [whole], [LAYER], skip_first=False)
            slow = read[LAYER][len(ids) :]
            torch.testing.assert_close(written.residuals[prompt, sample], slow, atol=2e-4, rtol=2e-4)


def test_what_else_is_in_the_batch_changes_nothing(tiny: LanguageModel) -> None:
    sampler = sampler_of(tiny)
    edits = [(vector, 0.7) for vector in VECTORS[:3]]
    together = sampler.write(edits, [11, 12, 13])
    for edit, seed, found in zip(edits, (11, 12, 13), together, strict=True):
        (alone,) = sampler.write([edit], [seed])
        assert torch.equal(alone.ids, found.ids)
        torch.testing.assert_close(alone.residuals, found.residuals, atol=2e-4, rtol=2e-4)
    assert not torch.equal(together[0].ids, sampler.write(edits[:1], [99])[0].ids)


def test_rows_are_chosen_as_the_engine_chooses_them() -> None:
    made = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 384, generator=made) * 3
    draws = torch.rand(200, generator=made)
    for top_k, top_p, temperature in ((50, 0.3, 1.0), (5, 1.0, 0.7), (1000, 0.9, 1.3), (1, 0.5, 1.0), (20, 0.5, 0.0)):
        ours = replace(SETTINGS, top_k=top_k, top_p=top_p, temperature=temperature)
        theirs = Sampling(top_k=top_k, top_p=top_p, temperature=temperature)
        one_by_one = [choose(row, theirs, [], float(draw)) for row, draw in zip(logits, draws, strict=True)]
        assert choose_rows(logits, draws, ours).tolist() == one_by_one


def test_the_quick_top_is_the_top() -> None:
    logits = torch.randn(7, 128 * 40, generator=torch.Generator().manual_seed(1))
    for k in (1, 10, 39):
        values, ids = top_of_rows(logits, k)
        expected = logits.topk(k, dim=-1)
        assert torch.equal(values, expected.values)
        assert torch.equal(ids, expected.indices)


def test_prompts_of_one_token_are_refused(tiny: LanguageModel) -> None:
    with pytest.raises(DataError, match="'A' has 1 tokens"):
        sampler_of(tiny, replace(SETTINGS, prompts=("A",)))


# --- scales


def scale_of(tiny: LanguageModel, rise: float = 0.3) -> CrossEntropyScale:
    return CrossEntropyScale(tiny, LAYER, 12.0, plain_pieces(tiny, 3, 16, 0), rise)


def test_cross_entropy_is_that_of_the_model_with_the_vector_added(tiny: LanguageModel) -> None:
    scale, pieces = scale_of(tiny), torch.tensor(plain_pieces(tiny, 3, 16, 0))
    logprobs = tiny.hf(pieces).logits.log_softmax(-1)[:, :-1].gather(-1, pieces[:, 1:, None])
    assert scale.baseline == pytest.approx(-float(logprobs.mean()), abs=1e-4)
    vectors = torch.stack([vector.tensor for vector in VECTORS])
    together = scale.cross_entropy(vectors, [0.5, 1.0, 1.5, 0.1])
    alone = [float(scale.cross_entropy(vectors[[n]], [s])[0]) for n, s in enumerate((0.5, 1.0, 1.5, 0.1))]
    assert together.tolist() == pytest.approx(alone, abs=1e-4)


def test_scales_lie_between_the_neighbours_that_enclose_the_target(tiny: LanguageModel) -> None:
    scale = scale_of(tiny)
    vectors = torch.stack([vector.tensor for vector in VECTORS])
    for vector, found in zip(vectors, scale.find(vectors), strict=True):
        if not found.is_reached:
            assert found.strength == GRID[-1]
            continue
        low, high = max([0.0, *(s for s in GRID if s <= found.strength)]), min(s for s in GRID if s >= found.strength)
        below, above = scale.cross_entropy(vector.expand(2, -1), [low, high]).tolist()
        assert below <= scale.target + 1e-6
        assert above >= scale.target - 1e-6


def test_a_target_out_of_reach_is_said_and_not_invented(tiny: LanguageModel) -> None:
    (found,) = scale_of(tiny, rise=1e6).find(VECTORS[0].tensor[None])
    assert (found.is_reached, found.strength) == (False, GRID[-1])


def test_there_is_only_so_much_plain_text(tiny: LanguageModel) -> None:
    with pytest.raises(DataError, match="ask for fewer"):
        plain_pieces(tiny, 10_000, 16, 0)


def test_settings_are_checked() -> None:
    for facts, said in (
        ({"prompts": ()}, "at least one prompt"),
        ({"samples": 0}, "'samples' must be 1"),
        ({"rise": 0.0}, "'rise'"),
        ({"top_p": 1.5}, "'top_p'"),
    ):
        with pytest.raises(DataError, match=said):
            EffectSettings(**facts)  # type: ignore[arg-type]


def test_probes_do_not_depend_on_how_many_follow() -> None:
    probes = Probes(toy(), 3)
    first = list(probes.first(12))
    assert first[:5] == list(Probes(toy(), 3).first(5))
    assert [probe.kind for probe in first[:4]] == ["row", "pair", "row", "random"]
    rows = [probe for probe in probes.first(200) if probe.kind == "row"]
    assert len({probe.features for probe in rows}) == len(rows) == 48  # Every live row once.
    for probe in first:
        assert probe.vector.norm == pytest.approx(1.0, abs=1e-5)
        if probe.kind == "row":
            assert probe.vector == Vector(torch.nn.functional.normalize(toy().W_dec[probe.features[0]].double(), dim=0))
