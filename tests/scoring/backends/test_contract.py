"""The interface contract of all backends that run on CPUs, against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score, pairwise_distances
from sklearn.preprocessing import StandardScaler

from raysep.config import ScoreConfig
from raysep.config.registry import METRICS
from raysep.errors import UsageError
from raysep.scoring.backend import Backend, Fold, Starts, drop_self
from raysep.scoring.backends import open_backend
from raysep.scoring.backends.cuml import CumlBackend
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.backends.torch import TorchBackend
from raysep.scoring.scoring import score_layer
from tests.scoring.test_formulas import blobs

BACKENDS = pytest.mark.parametrize("backend", [SklearnBackend(), TorchBackend()], ids=["sklearn", "torch"])


@BACKENDS
@pytest.mark.parametrize("n_init", [1, 4, 10])
def test_kmeans_equals_scikit_learn(backend: Backend, n_init: int) -> None:
    X, _ = blobs([30, 30, 30], spread=2.0)
    expected = KMeans(3, init="k-means++", n_init=n_init, random_state=5).fit(X)
    before = backend.iterations
    starts = backend.kmeans(backend.to_device(X), 3, n_init, 5)
    np.testing.assert_array_equal(starts.best, expected.labels_)
    assert starts.inertia.min() == pytest.approx(expected.inertia_, rel=1e-5)
    assert starts.labels.shape == (n_init, 90)
    assert backend.iterations >= before + n_init


@BACKENDS
def test_kmeans_fitted_on_a_sample_assigns_all(backend: Backend) -> None:
    X, _ = blobs([300, 300, 300], spread=0.3)
    X += 50
    sample = np.sort(np.random.default_rng(0).choice(900, 90, replace=False))
    starts = backend.kmeans(backend.to_device(X), 3, 4, 5, sample)
    expected = KMeans(3, n_init=4, random_state=5).fit(X[sample])
    np.testing.assert_array_equal(starts.best, expected.predict(X))
    assert starts.inertia.min() == pytest.approx(-expected.score(X), rel=1e-4)


@BACKENDS
def test_fewer_distinct_rows_than_clusters_is_no_error(backend: Backend) -> None:
    assert len(np.unique(backend.kmeans(backend.to_device(np.ones((10, 2), np.float32)), 3, 2, 0).best)) == 1


@BACKENDS
def test_neighbours_are_in_order_without_the_row_itself(backend: Backend) -> None:
    X, _ = blobs([20, 20])
    distances = pairwise_distances(X.astype(np.float64))
    np.fill_diagonal(distances, np.inf)
    expected = distances.argsort(axis=1)[:, :7]
    on_device = backend.to_device(X)
    np.testing.assert_array_equal(backend.neighbors(on_device, 7), expected)
    queries = np.array([3, 8, 39])
    np.testing.assert_array_equal(backend.neighbors(on_device, 7, queries), expected[queries])


@BACKENDS
def test_duplicates_are_no_neighbours_of_themselves(backend: Backend) -> None:
    X = np.repeat(np.arange(3, dtype=np.float32), 4)[:, None]
    found = backend.neighbors(backend.to_device(X), 3)
    assert not (found == np.arange(12)[:, None]).any()
    np.testing.assert_array_equal(X[found, 0], np.repeat(X, 3, axis=1))


@BACKENDS
def test_predictions_are_those_of_converged_fits(backend: Backend) -> None:
    X, y = blobs([60, 60, 60], spread=1.5)
    y = y * 7 - 3
    # Features of different scales, and a constant one.
    X = np.concatenate([X * np.linspace(0.1, 30, X.shape[1]), np.full((180, 1), 5)], axis=1).astype(np.float32)
    train, test = np.arange(0, 180, 2), np.arange(1, 180, 2)
    folds = [Fold(train, test, (0.01, 1.0)), Fold(test, train[:10], (0.1,))]
    found = backend.predict(backend.to_device(X), y, folds)
    assert [one.shape for one in found] == [(2, 90), (1, 10)]
    for fold, predicted in zip(folds, found, strict=True):
        scaler = StandardScaler().fit(X[fold.train])
        for C, ours in zip(fold.strengths, predicted, strict=True):
            model = LogisticRegression(C=C, max_iter=1000, tol=1e-6).fit(scaler.transform(X[fold.train]), y[fold.train])
            assert (ours == model.predict(scaler.transform(X[fold.test]))).mean() > 0.98


@pytest.mark.parametrize("present", [2, 3], ids=["two classes", "a third outside the fold"])
@pytest.mark.parametrize("C", [1e-3, 1e-1])
def test_two_classes_are_penalised_as_scikit_learn_penalises_them(present: int, C: float) -> None:
    X, y = blobs([150, 150, 100][:present], spread=4.0, D=50)
    train = np.flatnonzero((y < 2) & (np.arange(len(y)) % 2 == 0))
    test = np.flatnonzero((y < 2) & (np.arange(len(y)) % 2 == 1))
    ours, theirs = (
        backend.predict(backend.to_device(X), y, [Fold(train, test, [C])])[0][0]  # type: ignore[arg-type]
        for backend in (TorchBackend(), SklearnBackend())
    )
    assert (ours == theirs).mean() > 0.98


@BACKENDS
def test_rows_are_mean_centred(backend: Backend) -> None:
    X = (blobs([20, 20])[0] + 1000).astype(np.float32)
    np.testing.assert_allclose(backend.rows(backend.to_device(X)), X - X.mean(axis=0, dtype=np.float64), atol=1e-3)


@pytest.mark.parametrize("sizes", [[150] * 4, [30, 60, 120]], ids=["even", "uneven"])
@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("D", [8, 96])
def test_values_of_torch_are_within_a_hundredth_of_scikit_learns(sizes: list[int], spread: float, D: int) -> None:
    X, y = blobs(sizes, spread=spread, D=D)
    wanted = [("default", metric) for metric in METRICS]
    ours = score_layer(X, y, wanted, TorchBackend(), ScoreConfig(resamples=20))
    theirs = score_layer(X, y, wanted, SklearnBackend(), ScoreConfig(resamples=20))
    for one, reference in zip(ours, theirs, strict=True):
        assert one.backend == "torch"
        assert one.measured.value == pytest.approx(reference.measured.value, abs=0.01), one.metric
        if reference.measured.interval is not None:
            assert one.measured.interval == pytest.approx(reference.measured.interval, abs=0.01), one.metric


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 1000))
def test_drop_self_keeps_k_others_in_order(N: int, k: int, seed: int) -> None:
    k = min(k, N - 1)
    rng = np.random.default_rng(seed)
    neighbors = np.stack([rng.permutation(N)[: k + 1] for _ in range(N)])
    dropped = drop_self(neighbors, np.arange(N))
    assert dropped.shape == (N, k)
    for row in range(N):
        others = [index for index in neighbors[row] if index != row]
        assert dropped[row].tolist() == others[:k]


def test_auto_selects_torch_without_cuml_and_cuml_reports_its_problem() -> None:
    if CumlBackend.problem() is None:
        pytest.skip("this machine has cuML and a GPU")
    assert open_backend("auto").name.startswith("torch")
    assert open_backend("torch").name.startswith("torch")
    assert open_backend("sklearn").name == "sklearn"
    with pytest.raises(UsageError, match=r"score.backend is cuml: .*(not installed|no NVIDIA GPU)"):
        open_backend("cuml")


def test_the_first_of_equally_good_starts_is_best() -> None:
    labels = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    # The third is the best up to rounding, which differs between backends and machines.
    for rounding in (np.zeros(4), np.array([0, 0, -2e-7, 1e-7]), np.array([2e-7, 0, 0, -2e-7])):
        inertia = np.array([1.5, 2.0, 1.0, 1.0]) * (1 + rounding)
        np.testing.assert_array_equal(Starts(labels, inertia).best, labels[2])
    np.testing.assert_array_equal(Starts(labels, np.zeros(4)).best, labels[0])


def test_backends_agree_on_the_best_start_with_many_clusters() -> None:
    # 500 clusters of 1,000 images: starts differ only in single images.
    rng = np.random.default_rng(0)
    X = (np.repeat(rng.normal(size=(500, 8)), 2, axis=0) + 1e-3 * rng.normal(size=(1000, 8))).astype(np.float32)
    y = np.repeat(np.arange(500), 2)
    found = [backend.kmeans(backend.to_device(X), 500, 3, 0).best for backend in (SklearnBackend(), TorchBackend())]  # type: ignore[arg-type]
    one, two = (normalized_mutual_info_score(y, clusters) for clusters in found)
    assert one == pytest.approx(two, abs=1e-3)
