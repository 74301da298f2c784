"""Refuse layers that the model does not have before a job is made of them. Knows nothing of jobs."""

from __future__ import annotations

from collections.abc import Iterable

from steersman.errors import RequestError
from steersman.models.language_model import LanguageModel


def check_layers(model: LanguageModel, layers: Iterable[int]) -> None:
    """Look whether a model has all of these decoder blocks, counted from 0.

    Raises:
        RequestError: it lacks one of them: the caller's mistake, not the model's.
    """
    for layer in layers:
        if not 0 <= layer < model.n_layers:
            raise RequestError(f"there is no layer {layer}; {model.name} has layers 0 to {model.n_layers - 1}")
