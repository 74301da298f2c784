"""Choose the next token of one row from its logits. Pure functions; randomness comes in as a number in [0, 1).

The order is that of transformers: repetition penalty, temperature, top-k, top-p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.engine.request import Sampling, TokenLogprob

_COLDEST = 1e-6
Logits = Float[Tensor, " vocab"]


def choose(logits: Logits, sampling: Sampling, history: Sequence[int], draw: float) -> int:
    """The next token id.

    Args:
        logits: float32, one row; left as it is.
        sampling: how to choose.
        history: prompt and written tokens, which the repetition penalty looks at.
        draw: uniform in [0, 1); not used when greedy.
    """
    if sampling.repetition_penalty != 1.0:
        logits = penalised(logits, history, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    # From the maximum down, and never colder than float32 can divide: no temperature overflows.
    scaled = (logits - logits.max()) / max(sampling.temperature, _COLDEST)
    ids, probabilities = candidates(scaled, sampling.top_k, sampling.top_p)
    cumulative = probabilities.double().cumsum(0)
    index = int(torch.searchsorted(cumulative, draw * cumulative[-1].item(), right=True))
    return int(ids[min(index, len(ids) - 1)])


def penalised(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    """Logits with every token of `history` made less likely (CTRL, arXiv:1909.05858)."""
    seen = torch.tensor(history, device=logits.device)
    values = logits[seen]
    return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))


def candidates(logits: Logits, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Token ids and unnormalised probabilities left after top-k and top-p, likeliest first.

    Top-p keeps the shortest list of likeliest tokens that holds at least `top_p` of what top-k left.
    """
    probabilities = logits.softmax(-1)
    size = len(probabilities) if top_k == 0 else min(top_k, len(probabilities))
    if top_k == 0 and top_p < 1.0:
        # Sorting the whole vocabulary costs milliseconds. Tokens below this floor hold at most 1 - top_p together, so all
        # that are kept lie above it: some hundred, as a rule. (A little lower: sums of float32 are rounded.)
        floor = 0.99 * (1.0 - top_p) / size
        above = (probabilities >= floor).nonzero().squeeze(1)
        head, order = probabilities[above].sort(descending=True, stable=True)
        ids = above[order]
    elif top_k == 0:
        # Nothing is cut off, so no order is needed.
        return torch.arange(size, device=logits.device), probabilities
    else:
        head, ids = probabilities.topk(size)
    total = head.sum() if top_k else 1.0
    before = head.cumsum(0) - head  # Probability of all likelier tokens.
    keep = before < top_p * total
    keep[0] = True
    return ids[keep], head[keep]


def logprob_of(logits: Logits, token_id: int, top: int) -> TokenLogprob:
    """Log-probability of a token, and of the `top` likeliest ones, from untouched logits."""
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(top) if top else (logprobs[:0], logprobs[:0].long())
    likeliest = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), likeliest)
