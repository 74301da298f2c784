"""Names of places in a model, to our layers."""

from __future__ import annotations

import pytest

from steersman.errors import SaeError
from steersman.sae.importers.hooks import layer_of


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.9.hook_resid_post", 9),
        ("blocks.9.hook_resid_pre", 8),
        ("blocks.1.hook_resid_pre", 0),
        ("layers.10", 10),
        ("model.layers.10", 10),
        ("model.layers.10.output", 10),
        ("gpt_neox.layers.0", 0),
        ("transformer.h.11", 11),
        ("h.11", 11),
        ("layers_3", 3),
    ],
)
def test_the_stream_between_blocks_has_a_layer(hook: str, layer: int) -> None:
    assert layer_of(hook) == layer


@pytest.mark.parametrize(
    "hook", ["blocks.0.hook_resid_pre", "hook_embed", "embed_tokens", "model.embed_tokens", "embedding"]
)
def test_before_the_first_block_there_is_no_layer(hook: str) -> None:
    with pytest.raises(SaeError, match="before the first block"):
        layer_of(hook)


@pytest.mark.parametrize(
    "hook",
    [
        "blocks.9.hook_mlp_out",
        "blocks.9.attn.hook_z",
        "blocks.9.hook_resid_mid",
        "layers.10.mlp",
        "model.layers.10.self_attn.output",
        "blocks.-1.hook_resid_post",
        "blocks.9.hook_resid_post.extra",
        "9",
        "",
        "None",
    ],
)
def test_other_places_are_refused(hook: str) -> None:
    with pytest.raises(SaeError, match="between two blocks"):
        layer_of(hook)
