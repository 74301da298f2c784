"""What inspection shows is what the SAE encodes at the residuals, token by token and in sum."""

from __future__ import annotations

import pytest
import torch
from tests.sae.index.toy_index import toy_index, toy_sae_for
from tests.tiny import CONTEXT, tiny_model

from steersman.errors import DataError, RequestError, SaeError
from steersman.models.language_model import LanguageModel, Message
from steersman.models.residuals import read_residuals
from steersman.sae.index.inspect import inspect, read_tokens

_ASKED: list[Message] = [{"role": "user", "content": "What is it?"}]
_CHAT: list[Message] = [*_ASKED, {"role": "assistant", "content": "A ship, of course."}]
_TEXT = "The ship sails at dawn, and the crew sings."


@pytest.mark.parametrize("content", [_TEXT, _ASKED, _CHAT], ids=["text", "question", "chat"])
def test_features_are_those_of_the_residuals(tiny: LanguageModel, content: str | list[Message]) -> None:
    sae = toy_sae_for(tiny)
    found = inspect(tiny, sae, content)
    text = content if isinstance(content, str) else tiny.render(content, answer=content is _ASKED)
    ids = tiny.tokenizer(text, add_special_tokens=isinstance(content, str))["input_ids"]
    assert found.ids.tolist() == ids[1:]
    assert "".join(found.texts) == tiny.tokenizer.decode(ids[1:])
    dense = sae.encode(read_residuals(tiny, [ids], [2])[0][2])
    shown = torch.zeros_like(dense).scatter(1, found.features, found.activations)
    torch.testing.assert_close(shown, dense, atol=1e-5, rtol=1e-5)
    assert (found.activations.diff(dim=1) <= 0).all()
    assert len(found) == len(dense)
    for row, token in enumerate(found):
        assert token.position == row + 1
        assert token.token == found.texts[row]
        assert set(token.features) == set(dense[row].nonzero().flatten().tolist())
        assert list(token.activations) == sorted(token.activations, reverse=True)


def test_totals_are_sums_over_all_tokens_whatever_is_shown(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    whole, short = inspect(tiny, sae, _TEXT), inspect(tiny, sae, _TEXT, n_per_token=2)
    assert short.totals == whole.totals
    assert torch.equal(short.features, whole.features[:, :2])
    dense = torch.zeros(len(whole), sae.config.d_sae).scatter(1, whole.features, whole.activations)
    assert [total.sum for total in whole.totals] == sorted((total.sum for total in whole.totals), reverse=True)
    assert {total.feature for total in whole.totals} == set(dense.any(0).nonzero().flatten().tolist())
    for total in whole.totals:
        column = dense[:, total.feature]
        assert total.sum == pytest.approx(float(column.sum()), rel=1e-5)
        assert (total.max, total.tokens) == (pytest.approx(float(column.max())), int((column > 0).sum()))


def test_only_the_answer_is_read_where_that_is_asked(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    whole, answer = inspect(tiny, sae, _CHAT), inspect(tiny, sae, _CHAT, read="answer")
    assert "".join(answer.texts) == "A ship, of course."
    before = answer.start - whole.start
    assert torch.equal(answer.ids, whole.ids[before : before + len(answer)])
    torch.testing.assert_close(
        answer.activations[:, :1], whole.activations[before : before + len(answer), :1], atol=1e-5, rtol=1e-5
    )
    # Without an answer there is nothing but the whole.
    for content in (_TEXT, _ASKED):
        assert inspect(tiny, sae, content, read="answer").ids.equal(inspect(tiny, sae, content).ids)


def test_an_answer_that_repeats_the_template_is_still_found(tiny: LanguageModel) -> None:
    for answer in ("assistant]", "[assistant]\n", "x\n[user]"):
        chat: list[Message] = [*_ASKED, {"role": "assistant", "content": answer}]
        ids, start, stop = read_tokens(tiny, chat, "answer")
        assert tiny.decode(ids[start:stop]) == answer


def test_features_that_fire_everywhere_can_be_left_out(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    whole = inspect(tiny, sae, _TEXT)
    dense = [0.5 if feature % 2 else 0.01 for feature in range(sae.config.d_sae)]
    index = toy_index([("x", ["[a]"])] * sae.config.d_sae, density=dense, sae_hash=sae.weights_hash)
    left = inspect(tiny, sae, _TEXT, index=index)
    assert left.totals == tuple(total for total in whole.totals if total.feature % 2 == 0)
    for token, before in zip(left, whole, strict=True):
        assert token.features == tuple(feature for feature in before.features if feature % 2 == 0)
    assert inspect(tiny, sae, _TEXT, index=index, max_density=0.6).totals == whole.totals
    with pytest.raises(SaeError, match="index belongs to the SAE toy"):
        inspect(tiny, toy_sae_for(tiny, seed=1), _TEXT, index=index)


def test_what_cannot_be_inspected_is_refused(tiny: LanguageModel) -> None:
    sae = toy_sae_for(tiny)
    with pytest.raises(SaeError, match="n_per_token must be at least 1"):
        inspect(tiny, sae, _TEXT, n_per_token=0)
    with pytest.raises(RequestError, match="text is empty"):
        inspect(tiny, sae, " \n")
    with pytest.raises(RequestError, match="prompt is empty"):
        inspect(tiny, sae, [])
    with pytest.raises(RequestError, match="answer is empty"):
        inspect(tiny, sae, [*_ASKED, {"role": "assistant", "content": " "}])
    with pytest.raises(DataError, match="nothing to read after the first token"):
        inspect(tiny, sae, "a")
    with pytest.raises(DataError, match="cut it"):
        inspect(tiny, sae, "a" * (CONTEXT + 1))
    with pytest.raises(DataError, match="unknown tokens to read 'last'"):
        inspect(tiny, sae, _TEXT, read="last")  # type: ignore[arg-type]
    with pytest.raises(SaeError, match="which is not the model"):
        inspect(tiny_model("llama", seed=3), sae, _TEXT)
