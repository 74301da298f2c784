"""Embeddings are the means that they are said to be, block after block, and empty where there is nothing to embed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.sae.index.toy_index import WordEncoder, toy_index
from tests.tiny import tiny_tokenizer

from steersman.errors import SaeError
from steersman.sae.index import embed
from steersman.sae.index.embed import context_texts, embed_index

_FEATURES = [
    ("ships at sea", ["the [ship] sails", "a  [ship]\n\nsinks", "[ship]"]),
    (None, ["go [home]"]),
    ("nothing", []),
    ("ships at sea", ["", "[ship]"]),
]


def test_a_context_is_the_text_around_its_strongest_token() -> None:
    index = toy_index([("x", ["abcdefgh[j]klmnop", "[j]klmnop", "abc[j]", "  a\n\n [j]  b"])], shape=(4, 24))
    # Tokens are bytes here.
    assert context_texts(index, 0, tiny_tokenizer()) == ["defghjkl", "jkl", "abcj", "a j"]


def test_special_tokens_and_halves_of_characters_are_no_text() -> None:
    index = toy_index([("x", ["[é]a", "<s>[b]</s>", "[é]", "</s>[</s>]"])], shape=(4, 24))
    index.context_tokens[0, 2, 0] = -1  # The second byte alone is left, and then not even that.
    index.context_tokens[0, 2] = index.context_tokens[0, 2].roll(-1)
    assert context_texts(index, 0, tiny_tokenizer()) == ["éa", "b"]


def test_embeddings_are_those_of_the_label_and_the_mean_of_the_contexts() -> None:
    encoder, tokenizer = WordEncoder(), tiny_tokenizer()
    index = toy_index(_FEATURES)
    made = embed_index(index, encoder, tokenizer)
    assert made.label_embeddings is not None
    assert made.context_embeddings is not None
    texts = [context_texts(index, feature, tokenizer) for feature in range(4)]
    expected = F.normalize(encoder.encode(texts[0]).mean(0), dim=0)
    torch.testing.assert_close(made.context_embeddings[0].float(), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(made.label_embeddings[[0]].float(), encoder.encode(["ships at sea"]), atol=1e-3, rtol=0)
    assert torch.equal(made.label_embeddings[0], made.label_embeddings[3])
    assert not made.label_embeddings[1].any()
    assert not made.context_embeddings[2].any()
    assert made.facts.encoder == "words"
    assert index.facts.encoder is None
    assert made.named([None] * 4).label_embeddings is None


def test_the_strongest_contexts_are_taken_and_each_text_is_embedded_once() -> None:
    encoder = WordEncoder()
    index = toy_index([("ship", ["[ship]", "[ship]", "[boat]"])])
    embed_index(index, encoder, tiny_tokenizer(), contexts=2)
    assert encoder.asked == ["ship"]


def test_blocks_do_not_change_the_embeddings_and_progress_tells_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    index, encoder, tokenizer = toy_index(_FEATURES), WordEncoder(), tiny_tokenizer()
    whole = embed_index(index, encoder, tokenizer)
    monkeypatch.setattr(embed, "_BLOCK", 3)
    seen: list[tuple[int, int]] = []
    parts = embed_index(index, encoder, tokenizer, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]
    for name in ("label_embeddings", "context_embeddings"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_no_contexts_to_embed_is_refused() -> None:
    with pytest.raises(SaeError, match="at least 1, not 0"):
        embed_index(toy_index(_FEATURES), WordEncoder(), tiny_tokenizer(), contexts=0)
