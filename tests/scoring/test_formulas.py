from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as reference
from sklearn.neighbors import KNeighborsClassifier

from raysep.scoring import formulas
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.ties import hits


def blobs(sizes: list[int], spread: float = 1.0, D: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.normal(size=(len(sizes), D))
    return (centres[y] + spread * rng.normal(size=(len(y), D))).astype(np.float32), y


def right(y: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Whether neighbours have their image's label, without duplicate vectors."""
    return hits(y, neighbors, np.arange(len(y)))


labels = arrays(np.int64, st.integers(4, 40), elements=st.integers(0, 4))


@given(labels, st.randoms(use_true_random=False))
def test_clustering_metrics_equal_scikit_learn_and_ignore_label_names(y: np.ndarray, random: Any) -> None:
    clusters = np.array([random.randrange(3) for _ in y])
    if len(np.unique(y)) < 2:
        assert formulas.nmi(y, clusters) is formulas.ami(y, clusters) is formulas.ari(y, clusters) is None
        return
    assert formulas.nmi(y, clusters) == reference.normalized_mutual_info_score(y, clusters)
    assert formulas.ami(y, clusters) == reference.adjusted_mutual_info_score(y, clusters)
    assert formulas.ari(y, clusters) == reference.adjusted_rand_score(y, clusters)
    assert formulas.nmi(y * 7 + 3, 2 - clusters) == pytest.approx(formulas.nmi(y, clusters), abs=1e-12)


def test_a_single_cluster_scores_0() -> None:
    y = np.array([0, 0, 1, 1])
    assert (
        formulas.nmi(y, np.zeros(4, int)) == formulas.ami(y, np.zeros(4, int)) == formulas.ari(y, np.zeros(4, int)) == 0
    )


def test_neighbour_metrics_by_hand() -> None:
    y = np.array([0, 0, 0, 1])
    found = right(y, np.array([[1, 3, 2], [0, 2, 3], [3, 0, 1], [0, 1, 2]]))
    assert formulas.knn_purity(y, found, 3) == pytest.approx((2 + 2 + 2 + 0) / 12)
    assert formulas.knn_purity(y, found, 3, divisor=500) == pytest.approx(6 / 4 / 500)
    assert formulas.nn1(y, found) == pytest.approx(2 / 4)
    # The fourth image has a singleton class: R = 0, so that it doesn't count.
    assert formulas.r_precision(y, found) == pytest.approx((1 / 2 + 2 / 2 + 1 / 2) / 3)


def test_nn1_is_leave_one_out_accuracy() -> None:
    X, y = blobs([20, 30, 25], spread=1.5)
    found = right(y, SklearnBackend().neighbors(X, 10))
    expected = [
        KNeighborsClassifier(1).fit(np.delete(X, i, 0), np.delete(y, i)).predict(X[i : i + 1])[0] == y[i]
        for i in range(len(y))
    ]
    assert formulas.nn1(y, found) == pytest.approx(np.mean(expected))


def test_r_precision_reaches_one_for_uneven_classes_and_equals_purity_for_even_ones() -> None:
    X, y = blobs([5, 20, 40], spread=0.001)
    found = right(y, SklearnBackend().neighbors(X, 39))
    assert formulas.r_precision(y, found) == 1.0
    assert formulas.knn_purity(y, found, 39) < 1
    X, y = blobs([10, 10, 10], spread=2.0)
    found = right(y, SklearnBackend().neighbors(X, 9))
    assert formulas.r_precision(y, found) == pytest.approx(formulas.knn_purity(y, found, 9))


def test_undefined_metrics_are_none() -> None:
    one, few = np.zeros(4, int), np.ones((4, 2), bool)
    assert formulas.knn_purity(one, few, 2) is formulas.nn1(one, few) is formulas.r_precision(one, few) is None
    assert formulas.r_precision(np.arange(4), few) is None
    assert formulas.knn_purity(np.array([0, 0, 1, 1]), few, 0) is None
    with pytest.raises(ValueError, match="expected 3 or more neighbours"):
        formulas.knn_purity(np.array([0, 0, 1, 1]), few, 3)
    with pytest.raises(ValueError, match="expected 3 or more neighbours"):
        formulas.r_precision(np.array([0, 0, 0, 0, 1]), np.zeros((5, 2), bool))


def test_chance_levels() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 8)).astype(np.float32), np.repeat(np.arange(4), 150)
    backend = SklearnBackend()
    clusters, found = backend.kmeans(X, 4, 2, 0).best, right(y, backend.neighbors(X, 149))
    assert abs(formulas.ami(y, clusters)) < 0.02
    assert abs(formulas.ari(y, clusters)) < 0.02
    assert formulas.nn1(y, found) == pytest.approx(0.25, abs=0.06)
    assert formulas.r_precision(y, found) == pytest.approx(0.25, abs=0.02)
