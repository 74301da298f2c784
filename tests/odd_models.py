"""Two models that `tiny` does not make: a GGUF file as llama.cpp stores it, and an encoder-decoder, to be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.tiny import N_VOCAB, tiny_tokenizer


def write_gguf(path: Path, d_model: int = 32, n_layers: int = 2, width: int = 64) -> None:
    """Write a tiny Llama with a byte-level tokenizer of one merge ("h e")."""
    from gguf import GGUFWriter

    words = [word for word, _ in sorted(tiny_tokenizer().get_vocab().items(), key=lambda entry: entry[1])] + ["he"]
    rng = np.random.default_rng(0)
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(n_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(d_model)
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(d_model // 4)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3] * 4 + [1] * (len(words) - 4))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(words), d_model), "output": (len(words), d_model), "output_norm": (d_model,)}
    for layer in range(n_layers):
        parts = {"attn_q": d_model, "attn_k": d_model // 2, "attn_v": d_model // 2, "attn_output": d_model}
        shapes |= {f"blk.{layer}.{name}": (rows, d_model) for name, rows in parts.items()}
        shapes |= {f"blk.{layer}.{name}": (width, d_model) for name in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{layer}.ffn_down": (d_model, width)}
        shapes |= {f"blk.{layer}.{name}": (d_model,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny_t5() -> Any:
    """An encoder-decoder with as many layers on either side."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=N_VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)
