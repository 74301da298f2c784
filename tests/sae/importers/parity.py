"""An imported SAE does what the library that wrote it makes of the same residuals (see `fixtures/make.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steersman.errors import SaeError
from steersman.sae.config import WITH_THRESHOLD
from steersman.sae.file import load_sae, save_sae
from steersman.sae.importers import FORMATS
from steersman.sae.model import SparseAutoencoder

FIXTURES = Path(__file__).parent.parent / "fixtures"
TOLERANCE = 1e-5


def check_parity(sae: SparseAutoencoder, case: Path, tmp_path: Path) -> None:
    """Features and reconstruction equal the reference's, also for chosen features and after a trip through our files."""
    expected = load_file(case / "expected.safetensors")
    h, features = expected["h"], expected["features"]
    assert (sae.config.d_model, sae.config.d_sae) == (h.shape[-1], features.shape[-1])
    assert (sae.threshold is not None) == (sae.config.architecture in WITH_THRESHOLD)
    save_sae(sae, tmp_path / "ours")
    for one in (sae, load_sae(tmp_path / "ours")):
        assert close(one.encode(h), features)
        assert close(one.encode_features(h, [30, 4]), features[:, [30, 4]])
        assert close(one.reconstruct(h), expected["reconstruction"])


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def refusal(name: str, path: Path, **options: int) -> str:
    """What importing says; one line that names the file or folder."""
    with pytest.raises(SaeError) as refused:
        FORMATS[name](path, **options)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message
