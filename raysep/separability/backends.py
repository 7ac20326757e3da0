"""Who computes: scikit-learn on CPUs, the reference, or cuML on a GPU. One interface, two classes.

N images, D features. X is (N, D) float32 on the host.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raysep.errors import UsageError
from raysep.separability.centring import centred
from raysep.separability.names import Backend

Matrix = NDArray[np.float32]
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Starts:
    """k-means from several starts.

    Attributes:
        labels: (S, N) clusters of each start, in the order of the starts.
        inertia: (S,) of each.
    """

    labels: Labels
    inertia: NDArray[np.float64]

    @property
    def best(self) -> Labels:
        """(N,) clusters of the start with the least inertia.

        As scikit-learn does it, a start whose clusters are the same as those of the best one so far never
        takes its place, whatever rounding makes of the inertia.
        """
        best = 0
        for start in range(1, len(self.labels)):
            if self.inertia[start] < self.inertia[best] and not same_clusters(self.labels[start], self.labels[best]):
                best = start
        found: Labels = self.labels[best]
        return found


class Engine(Protocol):
    """What a backend does for the metrics. `name` goes into the scores."""

    name: str
    # Lloyd iterations of all calls so far.
    iterations: int

    def kmeans(self, X: Matrix, n_clusters: int, n_init: int, seed: int) -> Starts:
        """The clusters of `n_init` k-means++ starts. Needs N >= n_clusters, finite X."""
        ...

    def neighbors(self, X: Matrix, k: int) -> NDArray[np.int64]:
        """(N, k) Euclidean neighbours of each row, nearest first, the row itself left out. Needs k < N."""
        ...

    def predict_path(self, X: Matrix, y: Labels, X_test: Matrix, strengths: Sequence[float]) -> list[Labels]:
        """Predictions on X_test of L2 multinomial logistic regressions, one for each C of `strengths`.

        X and X_test are standardised; `strengths` go from the strongest penalty (smallest C) up.
        """
        ...


class SklearnEngine:
    """The reference: scikit-learn on the CPUs that the process may use."""

    name = "sklearn"

    def __init__(self) -> None:
        self.iterations = 0

    def kmeans(self, X: Matrix, n_clusters: int, n_init: int, seed: int) -> Starts:
        """`sklearn.cluster.KMeans` with k-means++ starts, otherwise its defaults.

        One random state goes through all starts, as it does inside scikit-learn: the first one is that of
        `n_init=1`, and the best one that of `n_init`, to the digit.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        state = np.random.RandomState(seed)
        with warnings.catch_warnings():
            # Fewer distinct rows than clusters: the clusters found are what there is to find.
            warnings.simplefilter("ignore", ConvergenceWarning)
            models = [KMeans(n_clusters, init="k-means++", n_init=1, random_state=state).fit(X) for _ in range(n_init)]
        self.iterations += sum(int(model.n_iter_) for model in models)
        return Starts(np.stack([m.labels_ for m in models]), np.array([m.inertia_ for m in models]))

    def neighbors(self, X: Matrix, k: int) -> NDArray[np.int64]:
        """`sklearn.neighbors.NearestNeighbors`, brute force: exact in any number of features."""
        from sklearn.neighbors import NearestNeighbors

        model = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(X)
        found: NDArray[np.int64] = model.kneighbors(return_distance=False)
        return found

    def predict_path(self, X: Matrix, y: Labels, X_test: Matrix, strengths: Sequence[float]) -> list[Labels]:
        """`sklearn.linear_model.LogisticRegression` (L-BFGS), each fit started from the one before."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(warm_start=True, tol=1e-3, max_iter=200)
        with warnings.catch_warnings():
            # Weak penalties on separable classes go on improving the loss long after the predictions stand.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return [model.set_params(C=strength).fit(X, y).predict(X_test) for strength in strengths]


class CumlEngine:
    """cuML 26.2 or newer on the process's GPU.

    A seed doesn't make cuML bit-reproducible, and its k-means crashes the process for N < K and puts
    everything in one cluster for NaN, so both are checked before the call.
    """

    name = "cuml"

    def __init__(self) -> None:
        self.iterations = 0

    def kmeans(self, X: Matrix, n_clusters: int, n_init: int, seed: int) -> Starts:
        """`cuml.cluster.KMeans`; its own defaults are one start and another seeding, so all is said."""
        from cuml.cluster import KMeans

        _check(X, more_than=n_clusters - 1)
        models = [
            KMeans(
                n_clusters=n_clusters,
                init="k-means++",
                n_init=1,
                random_state=seed + start,
                max_iter=300,
                output_type="numpy",
            ).fit(X)
            for start in range(n_init)
        ]
        self.iterations += sum(int(model.n_iter_) for model in models)
        labels = np.stack([np.asarray(model.labels_).astype(np.int64) for model in models])
        return Starts(labels, np.array([float(model.inertia_) for model in models]))

    def neighbors(self, X: Matrix, k: int) -> NDArray[np.int64]:
        """`cuml.neighbors.NearestNeighbors`, brute force, of k + 1 of which the row itself is dropped."""
        from cuml.neighbors import NearestNeighbors

        _check(X, more_than=k)
        # cuML's distances are float32 products: centred rows keep their digits.
        rows = centred(X)
        model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", output_type="numpy").fit(rows)
        found = np.asarray(model.kneighbors(rows, return_distance=False)).astype(np.int64)
        return drop_self(found)

    def predict_path(self, X: Matrix, y: Labels, X_test: Matrix, strengths: Sequence[float]) -> list[Labels]:
        """`cuml.linear_model.LogisticRegression` (quasi-Newton); it has no warm start."""
        from cuml.linear_model import LogisticRegression

        _check(X, more_than=0)
        return [
            np.asarray(
                LogisticRegression(C=strength, max_iter=1000, output_type="numpy")
                .fit(X, y.astype(np.int32))
                .predict(X_test)
            ).astype(y.dtype)
            for strength in strengths
        ]


def same_clusters(one: Labels, other: Labels) -> bool:
    """Whether two clusterings are the same but for the names of the clusters.

    >>> same_clusters(np.array([0, 0, 1]), np.array([2, 2, 0])), same_clusters(np.array([0, 0, 1]), np.array([0, 1, 1]))
    (True, False)
    """
    pairs = len(np.unique(np.stack([one, other]), axis=1).T)
    return pairs == len(np.unique(one)) == len(np.unique(other))


def drop_self(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave each row's own index out of its neighbours.

    Args:
        found: (N, k + 1) indices, nearest first.

    Returns:
        (N, k). A row that isn't among its own neighbours, because more than k others are equal to it,
        loses the last one instead.

    >>> drop_self(np.array([[0, 2], [0, 2], [2, 1]])).ravel().tolist()
    [2, 0, 1]
    """
    rows = np.arange(len(found))[:, None]
    own = found == rows
    own[~own.any(axis=1), -1] = True
    kept: NDArray[np.int64] = found[~own].reshape(len(found), -1)
    return kept


def cuml_problem() -> str | None:
    """Why cuML can't be used in this process, or None if it can."""
    if importlib.util.find_spec("cuml") is None:
        return "cuML is not installed: pip install 'raysep[gpu]'"
    import torch

    return None if torch.cuda.is_available() else "no NVIDIA GPU in this process"


def open_engine(backend: Backend) -> Engine:
    """The engine for a configured backend; `auto` takes cuML where a GPU and the package are there.

    Raises:
        UsageError: `cuml` is asked for and can't be used.
    """
    if backend == "sklearn":
        return SklearnEngine()
    problem = cuml_problem()
    if problem is None:
        return CumlEngine()
    if backend == "cuml":
        raise UsageError(f"score.backend is cuml: {problem}; or take `auto`")
    return SklearnEngine()


def _check(X: Matrix, more_than: int) -> None:
    if len(X) <= more_than:
        raise ValueError(f"expected more than {more_than} rows, got {len(X)}")
    if not np.isfinite(X).all():
        raise ValueError("expected finite values, got NaN or infinity")
