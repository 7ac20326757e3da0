import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances

from raysep.errors import UsageError
from raysep.separability import backends
from raysep.separability.backends import CumlEngine, SklearnEngine, drop_self, open_engine
from tests.separability.test_metrics import blobs


def test_kmeans_is_scikit_learns():
    X, _ = blobs([30, 30, 30], spread=2.0)
    for n_init in (1, 4, 10):
        expected = KMeans(3, init="k-means++", n_init=n_init, random_state=5).fit(X)
        starts = SklearnEngine().kmeans(X, 3, n_init, 5)
        np.testing.assert_array_equal(starts.best, expected.labels_)
        assert starts.inertia.min() == expected.inertia_
        assert starts.labels.shape == (n_init, 90)


def test_fewer_distinct_rows_than_clusters_is_no_error():
    assert len(np.unique(SklearnEngine().kmeans(np.ones((10, 2), np.float32), 3, 2, 0).best)) == 1


def test_neighbours_are_in_order_without_the_row_itself():
    X, _ = blobs([20, 20])
    distances = pairwise_distances(X.astype(np.float64))
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(SklearnEngine().neighbors(X, 7), distances.argsort(axis=1)[:, :7])


def test_duplicates_do_not_stand_for_themselves():
    X = np.repeat(np.arange(3, dtype=np.float32), 4)[:, None]
    found = SklearnEngine().neighbors(X, 3)
    assert not (found == np.arange(12)[:, None]).any()
    np.testing.assert_array_equal(X[found, 0], np.repeat(X, 3, axis=1))


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 1000))
def test_drop_self_keeps_k_others_in_order(N: int, k: int, seed: int):
    k = min(k, N - 1)
    rng = np.random.default_rng(seed)
    found = np.stack([rng.permutation(N)[: k + 1] for _ in range(N)])
    kept = drop_self(found)
    assert kept.shape == (N, k)
    for row in range(N):
        others = [index for index in found[row] if index != row]
        assert kept[row].tolist() == others[:k]


def test_the_path_of_penalties_predicts_as_separate_fits_do():
    X, y = blobs([60, 60, 60], spread=1.5)
    train, test = np.arange(0, 180, 2), np.arange(1, 180, 2)
    paths = SklearnEngine().predict_path(X[train], y[train], X[test], (0.01, 1.0))
    for strength, path in zip((0.01, 1.0), paths, strict=True):
        alone = LogisticRegression(C=strength, max_iter=1000, tol=1e-6).fit(X[train], y[train]).predict(X[test])
        assert (path == alone).mean() > 0.98


def test_auto_takes_scikit_learn_without_cuml_and_says_why_it_cannot_take_cuml():
    if backends.cuml_problem() is None:
        pytest.skip("cuML and a GPU are there")
    assert open_engine("auto").name == "sklearn"
    with pytest.raises(UsageError, match=r"score.backend is cuml: .*(not installed|no NVIDIA GPU)"):
        open_engine("cuml")


def test_cuml_is_refused_what_would_crash_it_or_answer_wrongly(monkeypatch: pytest.MonkeyPatch):
    for name in ("cuml", "cuml.cluster", "cuml.neighbors", "cuml.linear_model"):
        module = types.ModuleType(name)
        module.KMeans = module.NearestNeighbors = module.LogisticRegression = None
        monkeypatch.setitem(sys.modules, name, module)
    X = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="more than 3 rows"):
        CumlEngine().kmeans(X, 4, 1, 0)
    with pytest.raises(ValueError, match="more than 3 rows"):
        CumlEngine().neighbors(X, 3)
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        CumlEngine().kmeans(X, 2, 1, 0)
