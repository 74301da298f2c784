"""lm-evaluation-harness on top of the engine: likelihoods by hand, true greedy flags, windows, and a task run through it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evals.curve_rig import engine, recipe
from tests.tiny import CONTEXT

from steersman.engine.engine import Engine
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.engine.request import Request, Sampling
from steersman.errors import RequestError
from steersman.evals.harness import harness_model, reader_from
from steersman.evals.harness_reader import Reader, _windows


def by_hand(e: Engine, ids: list[int], answer: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = e.model.hf(input_ids=torch.tensor([[*ids, *answer]]), use_cache=False).logits[0].float()
    rows = logits[len(ids) - 1 : -1].log_softmax(-1)
    picked = rows.gather(-1, torch.tensor(answer)[:, None])
    return float(picked.sum()), rows.argmax(-1).tolist() == answer


def test_likelihoods_and_greedy_flags_are_those_of_a_plain_pass() -> None:
    e = engine()
    reader = Reader(e)
    [written] = e.generate([Request(prompt="hello", sampling=Sampling(max_tokens=3, ignore_eos=True))])
    pairs = [("hello", " world"), ("hello", "x"), ("hello ", "you"), ("", "abc")]
    found = reader.loglikelihood(pairs)
    for (context, answer), (logprob, is_greedy) in zip(pairs, found, strict=True):
        ids = e.model.encode(context.rstrip()) if context else [1]
        tokens = e.model.tokenizer(" " * context.endswith(" ") + answer, add_special_tokens=False)["input_ids"]
        wanted = by_hand(e, ids, tokens)
        assert logprob == pytest.approx(wanted[0], abs=2e-3)
        assert is_greedy is wanted[1]
    assert written.text is not None


@pytest.mark.parametrize("steering", [None, recipe()])
def test_what_greedy_decoding_writes_is_flagged_and_its_neighbours_are_not(steering: Any) -> None:
    reader = Reader(engine(), steering, 1.0)
    written = dict(zip(("ab", "abc"), reader._written({"ab": 4, "abc": 4}), strict=True))
    cases = [(prompt, ids[:n], True) for prompt, ids in written.items() for n in (1, 2, 4)]
    cases += [(prompt, (*ids[:n], ids[n] ^ 1), False) for prompt, ids in written.items() for n in (0, 1, 3)]
    items = [AnswerItem(prompt=prompt, answer=ids) for prompt, ids, _ in cases]
    lengths = [len(ids) for _, ids, _ in cases]
    assert reader._greedy(items, lengths, [False] * len(items)) == [wanted for _, _, wanted in cases]


@pytest.mark.parametrize(("n", "room"), [(0, 4), (3, 4), (4, 4), (5, 4), (23, 4), (23, 7)])
def test_windows_read_every_token_once_with_all_the_context_that_fits(n: int, room: int) -> None:
    new: list[int] = []
    for number, (start, stop, count) in enumerate(_windows(n, room)):
        assert stop - start <= room
        assert stop - start == min(room, stop)
        assert number == 0 or start < stop - count  # Something stands before the new tokens.
        new += range(stop - count, stop)
    assert new == list(range(n))


def test_rolling_is_the_sum_over_windows() -> None:
    e = engine()
    short, long = "a short text", "abcdefgh" * (CONTEXT // 6)
    found = Reader(e).rolling([short, long])
    [whole] = answer_logprobs(e, [AnswerItem(prompt="<s>", answer=short)])
    assert found[0] == pytest.approx(float(whole.sum()), abs=1e-3)
    assert math.isfinite(found[1])
    assert found[1] < found[0]


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    reader = Reader(engine())
    long = "z" * 40 + "abcdefgh" * 100
    assert reader.loglikelihood([(long, "xy")])[0] == reader.loglikelihood([(long[-(CONTEXT - 3) :], "xy")])[0]


def test_texts_end_before_the_first_stop_and_settings_are_checked() -> None:
    e = engine()
    reader = Reader(e, recipe(), 1.0)
    [whole] = reader.generate([("hello", {"max_gen_toks": 12})])
    stop = whole[5]
    assert reader.generate([("hello", {"until": [stop], "max_gen_toks": 12, "do_sample": False})]) == [
        whole[: whole.find(stop)]
    ]
    with pytest.raises(RequestError, match="did you mean 'top_p'"):
        reader.generate([("hello", {"topp": 0.5})])
    with pytest.raises(RequestError, match="leaves no room"):
        reader.generate([("hello", {"max_gen_toks": CONTEXT})])


def test_strength_zero_reads_as_the_plain_model() -> None:
    e = engine()
    pairs = [("hello", " world"), ("what", " now")]
    assert Reader(e, recipe(), 0.0).loglikelihood(pairs) == Reader(e).loglikelihood(pairs)
    assert Reader(e, recipe()).loglikelihood(pairs) != Reader(e).loglikelihood(pairs)


def test_an_unknown_model_argument_is_refused() -> None:
    with pytest.raises(RequestError, match="did you mean 'recipe'"):
        reader_from(recipee="x.json")


@pytest.mark.filterwarnings("ignore")
def test_a_local_task_runs_through_the_harness(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")
    rows = [{"q": f"Is {number} a number?", "choices": ["yes", "no"], "gold": number % 2} for number in range(4)]
    path = tmp_path / "task.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    e = engine()
    scores = []
    for steering in (None, recipe()):
        results = lm_eval.simple_evaluate(model=harness_model(e, steering), tasks=[task], bootstrap_iters=0)
        scores.append(results["results"]["local_choice"]["acc,none"])
        reader = Reader(e, steering)
        right = 0
        for row in rows:
            lls = [reader.loglikelihood([(str(row["q"]), f" {choice}")])[0][0] for choice in ("yes", "no")]
            right += int(lls.index(max(lls)) == row["gold"])
        assert scores[-1] == pytest.approx(right / len(rows))
