import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from raysep.scoring.kmeans import OUTSIDE, kmeans_on_subsets
from raysep.scoring.split_half import draw_halves
from tests.scoring.test_formulas import blobs


def inertia(X: np.ndarray, clusters: np.ndarray) -> float:
    return float(sum(((X[clusters == c] - X[clusters == c].mean(axis=0)) ** 2).sum() for c in np.unique(clusters)))


@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_subsets_are_clustered_as_well_as_scikit_learn_does(spread: float) -> None:
    X, y = blobs([40, 60, 50, 30], spread=spread)
    X -= X.mean(axis=0)
    halves = draw_halves(y, 40, 0)
    found = kmeans_on_subsets(X, halves, 4, 10, 0)
    ours, theirs, agree = [], [], []
    for members, clusters in zip(halves.T, found.T, strict=True):
        assert (clusters[~members] == OUTSIDE).all()
        assert set(clusters[members]) == {0, 1, 2, 3}
        model = KMeans(4, n_init=10, random_state=0).fit(X[members])
        ours.append(inertia(X[members], clusters[members]))
        theirs.append(model.inertia_)
        agree.append(adjusted_rand_score(model.labels_, clusters[members]))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.005)
    if spread < 1:
        assert min(agree) == 1.0


def test_clusters_are_a_fixed_point_and_depend_on_the_subset_alone() -> None:
    X, y = blobs([40, 60, 50], spread=1.0)
    halves = draw_halves(y, 20, 0)
    found = kmeans_on_subsets(X, halves, 3, 2, 1)
    for members, clusters in zip(halves.T, found.T, strict=True):
        centres = np.stack([X[clusters == c].mean(axis=0) for c in range(3)])
        nearest = ((X[members, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        assert (nearest == clusters[members]).mean() > 0.98
    moved = np.where(halves[:, :1], X, X + 5).astype(np.float32)
    np.testing.assert_array_equal(kmeans_on_subsets(moved, halves[:, :1], 3, 2, 1), found_alone(X, halves[:, :1]))


def found_alone(X: np.ndarray, members: np.ndarray) -> np.ndarray:
    return kmeans_on_subsets(X, members, 3, 2, 1)


def test_fewer_distinct_images_than_clusters() -> None:
    X = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    found = kmeans_on_subsets(X, np.ones((20, 3), bool), 4, 2, 0)
    for clusters in found.T:
        assert not set(clusters[:10]) & set(clusters[10:])
