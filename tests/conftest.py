"""Shared fixtures: tiny random models of real architectures, and the bundled model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model

from steersman.models.language_model import LanguageModel
from steersman.models.load import load_model
from steersman.settings import settle_sums


def pytest_configure() -> None:
    """Share the cores among the processes that test at once: threads that wait for cores wait for each other all the time."""
    settle_sums()  # As loading a model does in the programs that tests start: what both compute is compared.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        share = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(share)
        os.environ["OMP_NUM_THREADS"] = str(share)  # Of the programs that tests start.


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for tiny models, where a second only waits for the first; all of them for the bundled one."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("model") else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    """A random Llama of 4 layers and 32 dimensions with a byte-level tokenizer, float32."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def bundled() -> LanguageModel:
    """The bundled model in its default number format; fetched into the cache the first time."""
    return load_model()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data sets that are too large or too mixed to ship: `$STEERSMAN_TEST_DATA`, or `shared/data` beside the checkout."""
    folder = Path(os.environ.get("STEERSMAN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the test data are not at {folder}; set STEERSMAN_TEST_DATA")
    return folder
