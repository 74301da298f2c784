"""The logit lens: which tokens a feature makes likelier and unlikelier when nothing between it and the output is asked.

A decoder row goes through the model's final norm and its unembedding, as if it were written to the residual stream at
the very end (nostalgebraist 2020, "interpreting GPT: the logit lens"; for SAE features Bloom and Lin 2024, "Understanding
SAE Features with the Logit Lens"). Early layers speak through later ones, of which this knows nothing.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman.errors import SaeError, UnsupportedModel
from steersman.models.language_model import LanguageModel
from steersman.sae.model import SparseAutoencoder

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm", "ln_out")
_VOCABULARY_AT_ONCE = 1 << 14
# Logits held at once: 128 MiB.
_CHUNK_ELEMENTS = 1 << 25


class Lens(NamedTuple):
    """Tokens by feature, those most affected first."""

    promoted: Int[Tensor, "features n"]
    suppressed: Int[Tensor, "features n"]


@torch.no_grad()
def logit_lens(model: LanguageModel, sae: SparseAutoencoder, n: int = 10) -> Lens:
    """The `n` tokens whose logits each decoder row raises most, and those that it lowers most; int32, on the CPU.

    The logits' mean over the vocabulary is left in: it does not change which tokens come first. Of a row of zeros the
    tokens mean nothing.

    Raises:
        SaeError: the SAE is of another model or width, or the vocabulary has fewer than `n` tokens.
        UnsupportedModel: no final norm or no unembedding that we can find.
    """
    if sae.config.d_model != model.d_model:
        raise SaeError(
            f"an SAE of width {sae.config.d_model} does not fit {model.name}, whose residuals have {model.d_model}"
        )
    sae.check_fits(model.ref)
    unembedding = _unembedding(model)
    if not 1 <= n <= len(unembedding):
        raise SaeError(f"{n} tokens were asked for of each feature; {model.name} has 1 to {len(unembedding)}")
    directions = final_directions(model, sae.W_dec)
    best = [(directions.new_zeros(len(directions), 0), torch.zeros(len(directions), 0, dtype=torch.int32))] * 2
    for begin in range(0, len(unembedding), _VOCABULARY_AT_ONCE):
        rows = unembedding[begin : begin + _VOCABULARY_AT_ONCE].float()
        parts = torch.split(directions, max(1, _CHUNK_ELEMENTS // len(rows)))
        found = zip(*(_largest_of(part @ rows.T, n, begin) for part in parts), strict=True)
        best = [_merged(kept, list(chunks), n) for kept, chunks in zip(best, found, strict=True)]
    return Lens(best[0][1], best[1][1])


@torch.no_grad()
def final_directions(model: LanguageModel, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    """What the unembedding sees of each row: the norm's own function at the row, less what it makes of nothing.

    This takes every norm as it is (centring, a weight, one plus a weight, a bias that is then taken off) and equals the
    part of the final norm's output that is left as the row grows without bound. Rows are brought to a root mean square
    of 1 first, far above the norm's epsilon.

    Raises:
        UnsupportedModel: no final norm that we can find.
    """
    # In float32, and a copy: a layer norm of half precision refuses float32, and the model's own is left as it is.
    norm = copy.deepcopy(final_norm(model)).float()
    rows = rows.to(model.device, torch.float32)
    rms = rows.square().mean(-1, keepdim=True).sqrt()
    unit = torch.where(rms > 0, rows / rms.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    made: Tensor = norm(unit) - norm(torch.zeros_like(unit[:1]))
    return made.float()


def final_norm(model: LanguageModel) -> nn.Module:
    """The norm between the last decoder block and the unembedding: it stands beside the list of blocks.

    Raises:
        UnsupportedModel: nothing of a known name does.
    """
    root: nn.Module = model.hf
    for parent in root.modules():
        children = dict(parent.named_children())
        if any(isinstance(child, nn.ModuleList) and _holds(child, model.blocks) for child in children.values()):
            for name in _NORMS:
                if name in children:
                    return children[name]
    raise UnsupportedModel(
        f"{type(model.hf).__name__} has no final norm beside its decoder blocks ({', '.join(_NORMS)}); "
        "the logit lens needs one"
    )


def _holds(modules: nn.ModuleList, blocks: tuple[nn.Module, ...]) -> bool:
    return len(modules) == len(blocks) and modules[0] is blocks[0]


def _unembedding(model: LanguageModel) -> Float[Tensor, "vocabulary d_model"]:
    """One row a token, in the model's number format; the embedding itself where both are tied."""
    head: Any = model.hf.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] != model.d_model:
        raise UnsupportedModel(f"{type(model.hf).__name__} has no unembedding of plain weights for the logit lens")
    return weight.to(model.device)


def _largest_of(logits: Tensor, n: int, begin: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The n largest logits and the n largest of their negatives, each with token ids from `begin` on."""
    n = min(n, logits.shape[1])
    high, low = logits.topk(n), logits.topk(n, largest=False)
    return (high.values, _ids(high.indices, begin)), (-low.values, _ids(low.indices, begin))


def _ids(places: Tensor, begin: int) -> Tensor:
    return (places + begin).to("cpu", torch.int32)


def _merged(kept: tuple[Tensor, Tensor], chunks: list[tuple[Tensor, Tensor]], n: int) -> tuple[Tensor, Tensor]:
    values = torch.cat([kept[0], torch.cat([values for values, _ in chunks])], 1)
    ids = torch.cat([kept[1], torch.cat([ids for _, ids in chunks])], 1)
    best = values.topk(min(n, values.shape[1]))
    return best.values, ids.gather(1, best.indices.cpu())
