"""A causal language model with its tokenizer, decoder blocks and fingerprint. Knows nothing of steering."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from steersman.errors import RequestError, UnsupportedModel
from steersman.facts import fact
from steersman.models.blocks import find_blocks, text_config

_SAMPLED_ELEMENTS = 1024
# What a config says of how it was stored or loaded, not of what the model computes.
_VOLATILE_CONFIG = {
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "dtype",
    "torch_dtype",
    "quantization_config",
}
_VOLATILE_CONFIG |= {"architectures", "use_cache", "attn_implementation", "_attn_implementation", "pretraining_tp"}


class Message(TypedDict):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | Sequence[Message]
"""Raw text to continue, or a chat to answer."""


@fact
class ModelRef:
    """Which model a recipe or profile belongs to. Equal for the same checkpoint in any number format and place."""

    id: str
    """Hub id, file name or `default`: for people, not compared."""
    config_hash: str
    """SHA-256 of the configuration, without what only says how it was stored."""
    weights_hash: str
    """SHA-256 over every tensor's name, shape and up to 1,024 evenly spaced elements rounded to bfloat16."""

    def matches(self, other: ModelRef) -> bool:
        """Whether both name the same model."""
        return (self.config_hash, self.weights_hash) == (other.config_hash, other.weights_hash)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model, ready to be read and steered.

    One forward pass at a time: whoever calls `hf` holds `lock`, so that no hook of one caller sees the pass of another.
    """

    hf: Any
    """The transformers model (`AutoModelForCausalLM`), in eval mode."""
    tokenizer: Any
    """Its tokenizer."""
    name: str
    """What it was loaded as."""
    stored_hash: str | None = None
    """`weights_hash` of the weights as stored, where the loaded ones (float16) no longer give it."""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held around every forward pass."""

    def __post_init__(self) -> None:
        config = text_config(self.hf)
        if getattr(self.hf.config, "is_encoder_decoder", False):
            raise UnsupportedModel(f"{self.name} is an encoder-decoder; steersman reads decoder-only language models")
        if not isinstance(getattr(config, "hidden_size", None), int):
            raise UnsupportedModel(f"{self.name} does not say how wide its residual stream is (hidden_size)")

    @cached_property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The decoder blocks, first to last."""
        return find_blocks(self.hf)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(text_config(self.hf).hidden_size)

    @property
    def n_vocab(self) -> int:
        """Number of rows of the unembedding."""
        return int(text_config(self.hf).vocab_size)

    @property
    def context_tokens(self) -> int:
        """The longest sequence the model was made for."""
        return int(getattr(text_config(self.hf), "max_position_embeddings", None) or 1 << 20)

    @cached_property
    def device(self) -> torch.device:
        """Where the embeddings live; inputs go there."""
        device: torch.device = self.hf.get_input_embeddings().weight.device
        return device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Number format of the residual stream."""
        dtype: torch.dtype = self.hf.dtype
        return dtype

    @cached_property
    def ref(self) -> ModelRef:
        """The fingerprint, computed once (a fraction of a second a billion parameters)."""
        return ModelRef(
            id=self.name,
            config_hash=config_hash(self.hf.config),
            weights_hash=self.stored_hash or weights_hash(self.hf.state_dict()),
        )

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a text: the tokenizer's and the generation config's."""
        named = getattr(getattr(self.hf, "generation_config", None), "eos_token_id", None)
        ids = [named] if isinstance(named, int) else list(named or [])
        if self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        return frozenset(ids)

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer knows how to write a chat."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: a text as it stands, a chat through the model's template, ready to be answered.

        Raises:
            RequestError: the prompt is empty, or a chat for a model without a chat template.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("the prompt is empty; write something for the model to continue")
            _check_text(prompt)
            ids = self.tokenizer(prompt)["input_ids"]
        else:
            ids = self.tokenizer(self.render(prompt), add_special_tokens=False)["input_ids"]
        if not ids:
            raise RequestError("the prompt holds no token that this model knows")
        return list(ids)

    def render(self, chat: Sequence[Message], *, answer: bool = True) -> str:
        """The chat as the text that the model reads; with `answer`, ending where the assistant begins to write.

        Raises:
            RequestError: no messages, an empty last user message, or no chat template.
        """
        asked = [message["content"] for message in chat if message["role"] == "user"]
        if not asked or not asked[-1].strip():
            raise RequestError("the prompt is empty; write a message for the model to answer")
        for message in chat:
            _check_text(message["content"])
        if not self.is_chat:
            raise RequestError(f"{self.name} has no chat template; pass plain text (--raw on the command line)")
        messages = [dict(message) for message in chat]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except Exception as error:
            raise RequestError(
                f"the chat template of {self.name} refuses this chat: {' '.join(str(error).split())}"
            ) from error
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens, exactly as written."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt holds half a character (a lone surrogate) at {error.start}; remove it"
        ) from error


def chat(text: str, system: str | None = None) -> tuple[Message, ...]:
    """One user message, with a system prompt or the model's own."""
    user: Message = {"role": "user", "content": text}
    return (user,) if system is None else ({"role": "system", "content": system}, user)


def config_hash(config: Any) -> str:
    """Hex SHA-256 of a transformers config, without the fields that only say how it was stored."""
    # The difference from the defaults: fields that a later transformers adds do not change the hash.
    facts = json.loads(config.to_json_string(use_diff=True))
    return hashlib.sha256(json.dumps(_stable(facts), sort_keys=True).encode()).hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if key not in _VOLATILE_CONFIG}
    return value


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over every tensor's name, shape and a sample of its elements in bfloat16.

    The same checkpoint gives the same hash on any device and when loaded in float32 or bfloat16 (float16 rounds once
    more: see `LanguageModel.stored_hash`). It tells models apart; it is no protection against someone who alters single
    weights on purpose.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.reshape(-1)
        index = torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), _SAMPLED_ELEMENTS), dtype=torch.float64)
        sample = flat[index.long().to(flat.device)]
        digest.update(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
