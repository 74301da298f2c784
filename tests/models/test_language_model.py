"""A model knows its shape, its fingerprint and how to write a prompt."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.odd_models import tiny_t5
from tests.recipes import few
from tests.tiny import ARCHITECTURES, CONTEXT, D_MODEL, N_LAYERS, N_VOCAB, tiny_model, tiny_tokenizer

from steersman.errors import RequestError, UnsupportedModel
from steersman.models.language_model import LanguageModel, ModelRef, chat, config_hash, weights_hash

# --- shape


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_shape(kind: str) -> None:
    model = tiny_model(kind)
    assert (model.n_layers, model.d_model, model.n_vocab, model.context_tokens) == (N_LAYERS, D_MODEL, N_VOCAB, CONTEXT)
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.eos_ids == {2}


def test_eos_tokens_of_the_generation_config_and_the_tokenizer_are_joined() -> None:
    model = tiny_model()
    model.hf.generation_config.eos_token_id = [7, 9]
    assert LanguageModel(model.hf, model.tokenizer, "m").eos_ids == {2, 7, 9}
    model.hf.generation_config.eos_token_id = 7
    assert LanguageModel(model.hf, model.tokenizer, "m").eos_ids == {2, 7}
    model.hf.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    assert LanguageModel(model.hf, model.tokenizer, "m").eos_ids == frozenset()


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="encoder-decoder"):
        LanguageModel(tiny_t5(), tiny_tokenizer(), "t5")


def test_a_model_without_a_width_is_refused() -> None:
    shapeless = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=2))
    with pytest.raises(UnsupportedModel, match="hidden_size"):
        LanguageModel(shapeless, tiny_tokenizer(), "shapeless")


# --- fingerprint


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_same_checkpoint_is_the_same_model_in_float32_and_bfloat16(kind: str) -> None:
    one, other = tiny_model(kind).ref, tiny_model(kind, dtype=torch.bfloat16).ref
    assert one.weights_hash == other.weights_hash
    assert one.config_hash == other.config_hash
    assert one.matches(other)


def test_the_same_checkpoint_is_the_same_model_in_any_number_format(tmp_path: Path) -> None:
    # float16 is what Apple's and older CUDA devices get; a recipe must fit there too.
    from steersman.models.load import load_model
    from steersman.settings import Settings

    model = tiny_model()
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    settings = Settings(cache=tmp_path / "cache", offline=True)
    formats = ("float32", "bfloat16", "float16")
    refs = [load_model(str(tmp_path / "model"), dtype=dtype, settings=settings).ref for dtype in formats]
    assert refs[0].matches(refs[1])
    assert refs[0].matches(refs[2])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_other_weights_are_another_model(kind: str) -> None:
    assert not tiny_model(kind).ref.matches(tiny_model(kind, seed=1).ref)
    assert tiny_model(kind).ref.matches(tiny_model(kind).ref)
    assert tiny_model(kind).ref.config_hash == tiny_model(kind, seed=1).ref.config_hash


def test_the_name_is_not_compared() -> None:
    one = ModelRef(id="here", config_hash="c", weights_hash="w")
    assert one.matches(ModelRef(id="there", config_hash="c", weights_hash="w"))
    assert not one.matches(ModelRef(id="here", config_hash="d", weights_hash="w"))
    assert not one.matches(ModelRef(id="here", config_hash="c", weights_hash="x"))


def test_weights_hash_sees_names_shapes_and_values() -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2, 3), "empty": torch.zeros(0), "scalar": torch.tensor(1.0)}
    seen = {
        weights_hash(state),
        weights_hash({**state, "a": torch.arange(6.0).reshape(2, 3)}),
        weights_hash({**state, "a": torch.arange(6.0) + 1}),
        weights_hash({**state, "b": torch.ones(2, 3) * 2}),
        weights_hash({**state, "c": torch.ones(1)}),
        weights_hash({"a2" if name == "a" else name: tensor for name, tensor in state.items()}),
        weights_hash({**state, "scalar": torch.tensor(2.0)}),
    }
    assert len(seen) == 7
    assert weights_hash(dict(reversed(state.items()))) == weights_hash(state)


@few
@given(st.integers(1, 5000))
def test_weights_hash_samples_the_ends_and_needs_no_contiguous_memory(size: int) -> None:
    values = torch.arange(float(size))
    reference = weights_hash({"a": values})
    for at in {0, size - 1}:
        changed = values.clone()
        changed[at] = -7.0
        assert weights_hash({"a": changed}) != reference
    assert weights_hash({"a": values.repeat_interleave(2)[::2]}) == reference


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_config_hash_survives_saving_and_loading(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = tiny_model(kind)
    model.hf.save_pretrained(tmp_path)
    expected = config_hash(model.hf.config)
    assert config_hash(AutoConfig.from_pretrained(tmp_path)) == expected
    for attention in ("eager", None):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention, dtype=torch.bfloat16)
        assert config_hash(again.config) == expected
        assert weights_hash(again.state_dict()) == model.ref.weights_hash


def test_the_config_hash_tells_computations_apart() -> None:
    config = tiny_model().hf.config
    before = config_hash(config)
    config.use_cache = not config.use_cache
    config.name_or_path = "elsewhere"
    assert config_hash(config) == before
    config.rms_norm_eps *= 2
    assert config_hash(config) != before
    assert len({config_hash(tiny_model(kind).hf.config) for kind in ARCHITECTURES}) == len(ARCHITECTURES)


def test_generating_does_not_change_the_fingerprint() -> None:
    model = tiny_model()
    before = model.ref
    model.hf.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert LanguageModel(model.hf, model.tokenizer, model.name).ref == before


# --- prompts


def test_a_chat_is_written_by_the_template(tiny: LanguageModel) -> None:
    turns = chat("Hello", system="Be brief")
    assert tiny.render(turns) == "<s>[system]Be brief\n[user]Hello\n[assistant]"
    assert tiny.render(turns, answer=False) == "<s>[system]Be brief\n[user]Hello\n"
    assert tiny.render(chat("Hello")) == "<s>[user]Hello\n[assistant]"


def test_a_chat_begins_with_one_begin_token_however_it_is_encoded(tiny: LanguageModel) -> None:
    ids = tiny.encode(chat("Hello"))
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert tiny.decode(ids) == "[user]Hello\n[assistant]"


@few
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda text: "<" not in text))
def test_any_text_is_decoded_as_it_was_encoded(text: str) -> None:
    ids = _MODEL.encode(text)
    assert isinstance(ids, list)
    assert all(isinstance(index, int) for index in ids)
    assert _MODEL.decode(ids) == text


_MODEL = LanguageModel(tiny_model().hf, tiny_tokenizer(), "tiny")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        (),
        chat(""),
        chat("  \n"),
        chat("", system="Be brief"),
        [{"role": "system", "content": "Be brief"}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": " "},
        ],
    ],
    ids=repr,
)
def test_an_empty_prompt_is_refused(tiny: LanguageModel, prompt: Any) -> None:
    with pytest.raises(RequestError, match="empty"):
        tiny.encode(prompt)


def test_a_chat_for_a_model_without_a_template_is_refused() -> None:
    model = LanguageModel(_MODEL.hf, tiny_tokenizer(), "base")
    model.tokenizer.chat_template = None
    assert not model.is_chat
    with pytest.raises(RequestError, match="chat template"):
        model.encode(chat("Hello"))
    assert model.encode("Hello")


def test_a_template_that_refuses_a_role_is_a_request_error() -> None:
    model = LanguageModel(_MODEL.hf, tiny_tokenizer(), "strict")
    # As Gemma's does.
    model.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    assert model.render(chat("Hello")) == "Hello"
    with pytest.raises(RequestError, match="System role not supported"):
        model.render(chat("Hello", system="Be brief"))


def test_a_text_of_no_known_token_is_refused() -> None:
    model = LanguageModel(_MODEL.hf, lambda *_a, **_k: {"input_ids": []}, "deaf")
    with pytest.raises(RequestError, match="no token"):
        model.encode("text")


def test_special_tokens_are_left_out_of_text(tiny: LanguageModel) -> None:
    assert tiny.decode([1, *tiny.encode("a ,b . c"), 2]) == "a ,b . c"


def test_the_lock_may_be_taken_twice_by_one_thread_and_once_by_two() -> None:
    taken: list[bool] = []
    with _MODEL.lock, _MODEL.lock:
        thread = threading.Thread(target=lambda: taken.append(_MODEL.lock.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert taken == [False]


@pytest.mark.model
def test_the_bundled_model_is_what_it_says(bundled: LanguageModel) -> None:
    assert (bundled.n_layers, bundled.d_model, bundled.n_vocab) == (30, 576, 49_152)
    assert bundled.is_chat
    text = bundled.render(chat("Hi"))
    assert text.index("system") < text.index("Hi")
    assert bundled.decode(bundled.encode("Hello there.")) == "Hello there."
