"""Tiny random models of the architectures that steersman is proven on, with a byte-level tokenizer made on the spot."""

from __future__ import annotations

from typing import Any

import torch

from steersman.models.language_model import LanguageModel

N_LAYERS, D_MODEL, N_VOCAB, CONTEXT = 4, 32, 384, 512
_COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GPT2 = {"vocab_size": N_VOCAB, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": 4, "n_positions": CONTEXT}
_MIXED = ["sliding_attention", "full_attention"] * (N_LAYERS // 2)
_MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {**_GPT2, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("GPTNeoX", {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}),
    "llama": ("Llama", _COMMON),
    "mistral": ("Mistral", {**_COMMON, "sliding_window": 8}),
    "qwen2": ("Qwen2", {**_COMMON, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {**_COMMON, "head_dim": 8}),
    "gemma2": ("Gemma2", {**_COMMON, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3",
        {**_COMMON, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": _MIXED},
    ),
    "phi3": ("Phi3", {**_COMMON, "sliding_window": 8}),
    "olmo": ("Olmo", _COMMON),
    "mixtral": ("Mixtral", {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", {**_COMMON, **_MOE, "head_dim": 8}),
}


def tiny_model(kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A random model of the named architecture: 4 layers, 32 dimensions, vocabulary of 384, context of 512."""
    import transformers

    prefix, fields = ARCHITECTURES[kind]
    config_name = f"{prefix}TextConfig" if kind == "gemma3" else f"{prefix}Config"
    config = getattr(transformers, config_name)(**fields)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        name = "GPT2LMHeadModel" if kind == "gpt2" else f"{prefix}ForCausalLM"
        hf = getattr(transformers, name)(config).eval().requires_grad_(False)
        # Random initialisation is so small that every token looks alike; spread the weights to make behaviour visible.
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    finally:
        torch.random.set_rng_state(state)
    return LanguageModel(hf.to(dtype), tiny_tokenizer(), f"tiny-{kind}")


def tiny_tokenizer() -> Any:
    """One token a byte (ids 4 to 259), with begin, end and padding tokens and a plain chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{char: index + 4 for index, char in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    turns = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    fast.chat_template = f"<s>{turns}{{% if add_generation_prompt %}}[assistant]{{% endif %}}"
    return fast
