import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from raysep.scoring import torch_kmeans
from raysep.scoring.centring import centred
from tests.scoring.test_formulas import blobs


@pytest.mark.parametrize(("sizes", "D", "K"), [([40] * 5, 32, 5), ([25] * 4, 8, 12), ([200, 30], 4, 3)])
def test_each_start_equals_scikit_learn(sizes: list[int], D: int, K: int) -> None:
    X = centred(blobs(sizes, spread=2.0, D=D)[0])
    found = torch_kmeans.kmeans(torch.from_numpy(X), K, 6, seed=11)
    state = np.random.RandomState(11)
    models = [KMeans(K, n_init=1, random_state=state).fit(X) for _ in range(6)]
    same = [(model.labels_ == ours.numpy()).all() for model, ours in zip(models, found.labels, strict=True)]
    # Rounding may change a draw between two rows, and thus a start.
    assert np.mean(same) >= 5 / 6
    ratios = [ours / model.inertia_ for model, ours in zip(models, found.inertia, strict=True)]
    assert np.array(ratios)[same] == pytest.approx(1, abs=1e-5)
    assert min(found.inertia) <= min(model.inertia_ for model in models) * 1.001
    assert found.iterations == pytest.approx(sum(model.n_iter_ for model in models), rel=0.1)


@settings(max_examples=15)
@given(st.integers(2, 6), st.integers(10, 40), st.integers(0, 999))
def test_converged_clusters_are_a_fixed_point(K: int, N: int, seed: int) -> None:
    X = centred(np.random.default_rng(seed).normal(size=(N, 3)).astype(np.float32))
    found = torch_kmeans.kmeans(torch.from_numpy(X), K, 3, seed)
    for labels, centres, inertia in zip(found.labels.numpy(), found.centres.numpy(), found.inertia, strict=True):
        distances = ((X[:, None] - centres) ** 2).sum(axis=2)
        np.testing.assert_allclose(distances[np.arange(N), labels], distances.min(axis=1), atol=1e-5)
        assert inertia == pytest.approx(distances.min(axis=1).sum(), rel=1e-4)
        assert set(labels) == set(range(K))


def test_an_empty_cluster_gets_the_furthest_row() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    labels = torch.tensor([0, 0, 0, 0])
    centres = torch.tensor([[1.0], [99.0]])
    sums, sizes = torch.tensor([[13.0], [0.0]], dtype=torch.float64), torch.tensor([4.0, 0.0], dtype=torch.float64)
    torch_kmeans._refill(rows, sums, sizes, labels, centres)
    assert sums.flatten().tolist() == [3.0, 10.0]
    assert sizes.tolist() == [3.0, 1.0]


def test_the_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(centred(blobs([60, 60])[0]))
    centres = rows[:12].reshape(3, 4, -1)
    whole = torch_kmeans.assign(rows, centres)
    monkeypatch.setattr(torch_kmeans, "BLOCK_BYTES", 4 * 12 * 7)
    assert torch.equal(torch_kmeans.assign(rows, centres), whole)


def test_labels_belong_to_the_centres_when_iterations_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_kmeans, "ITERATIONS", 2)
    rows = torch.from_numpy(centred(blobs([60, 60, 60], spread=3.0)[0]))
    found = torch_kmeans.kmeans(rows, 3, 4, 0)
    assert torch.equal(found.labels, torch_kmeans.assign(rows, found.centres))
