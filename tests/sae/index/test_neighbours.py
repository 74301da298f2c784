from __future__ import annotations

import pytest
import torch

from steersman.errors import SaeError
from steersman.sae.index import neighbours
from steersman.sae.index.neighbours import nearest


@pytest.mark.parametrize("chunk", [1 << 25, 7])
def test_neighbours_equal_the_full_table(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(neighbours, "_CHUNK_ELEMENTS", chunk)
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * 3
    table = torch.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(-2)
    found = nearest(rows, 5)
    torch.testing.assert_close(found.cosines, table.sort(descending=True).values[:, :5])
    assert torch.equal(found.ids.long(), table.argsort(descending=True)[:, :5])
    assert (found.ids.dtype, found.cosines.dtype) == (torch.int32, torch.float32)


def test_a_feature_is_not_its_own_neighbour_and_its_copy_is() -> None:
    rows = torch.eye(4)[[0, 1, 0, 2]]
    found = nearest(rows * torch.tensor([1.0, 2.0, 5.0, 1.0])[:, None], 1)
    assert (found.ids[0, 0], found.ids[2, 0]) == (2, 0)
    assert found.cosines[0, 0] == 1
    assert all(row not in found.ids[row] for row in range(4))


def test_a_row_of_zeros_and_few_features() -> None:
    found = nearest(torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), 8)
    assert found.ids.shape == (3, 2)
    assert found.cosines.tolist() == [[0, 0], [0, -1], [0, -1]]
    assert nearest(torch.ones(1, 3)).ids.shape == (1, 0)


def test_no_neighbours_are_refused() -> None:
    with pytest.raises(SaeError, match="at least 1 neighbour"):
        nearest(torch.ones(3, 3), 0)
