import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances

from raysep.scoring import torch_knn
from raysep.scoring.centring import centred
from tests.scoring.test_formulas import blobs


def by_sorting(X: np.ndarray, k: int) -> np.ndarray:
    distances = pairwise_distances(X.astype(np.float64))
    np.fill_diagonal(distances, np.inf)
    return distances.argsort(axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("block", [4, 100_000], ids=["row by row", "at once"])
def test_neighbours_are_exact(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_knn, "BLOCK_BYTES", block)
    monkeypatch.setattr(torch_knn, "MIN_QUERIES", 1)
    X = centred(blobs([50, 50], D=16)[0])
    found = torch_knn.nearest(torch.from_numpy(X), 20, torch.arange(100)).numpy()
    np.testing.assert_array_equal(found, by_sorting(X, 20))


def test_distances_below_rounding_error_are_ordered_correctly() -> None:
    # Tight clusters far apart: float32 dot products give 0 for all distances within a cluster.
    rng = np.random.default_rng(0)
    X = np.repeat(np.array([[-300.0] * 8, [300.0] * 8]), 30, axis=0) + rng.normal(scale=1e-2, size=(60, 8))
    X = X.astype(np.float32)
    rows = torch.from_numpy(X)
    found = torch_knn.nearest(rows, 5, torch.arange(60)).numpy()
    np.testing.assert_array_equal(found, by_sorting(X, 5))
    squares = rows.square().sum(dim=1)
    rounded = torch_knn._search(rows, squares, torch.arange(60), 5)[1].numpy()
    assert (rounded == found).mean() < 0.9
