"""What the unsteered model thinks of a steered answer: the guard's second measure.

The answer is read by the plain model into a slab of its own, a window at a time, so that it costs a fraction of a decode step.
"""

from __future__ import annotations

import torch

from steersman.engine.runner import Runner
from steersman.engine.sequence import RunningSequence


def mean_logprob(runner: Runner, sequence: RunningSequence) -> float | None:
    """Mean log-probability a token, by the unsteered model, of the window the guard looks at.

    None where the guard does not ask for it, or nothing steers the request (any more).
    """
    guard = sequence.request.guard
    if guard.min_logprob is None or not sequence.is_steered:
        return None
    window = min(guard.window_tokens, len(sequence.written))
    text = [*sequence.prompt_ids, *sequence.written]
    first = len(text) - window
    if sequence.shadow is None:
        sequence.shadow = runner.new_cache()
    # Read again from just before the window: its logits are needed, and the columns are simply written anew.
    start = min(sequence.shadow_tokens, first - 1)
    ids = torch.tensor([text[start:-1]], device=runner.model.device)
    positions = torch.arange(start, len(text) - 1, device=ids.device)[None]
    keep = torch.arange(first - 1 - start, len(text) - 1 - start, device=ids.device)[None]
    logits = runner.forward(sequence.shadow, ids, positions, keep)
    sequence.shadow_tokens = len(text) - 1
    targets = torch.tensor(text[first:], device=ids.device)
    return float(logits[0].log_softmax(-1).gather(-1, targets[:, None]).mean())
