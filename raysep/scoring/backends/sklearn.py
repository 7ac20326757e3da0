"""The reference backend: scikit-learn on the CPUs available to the process."""

import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.backend import Fold, Labels, Matrix, Positions, Starts, drop_self
from raysep.scoring.backends import backend
from raysep.scoring.centring import centred

# Rows per block of the inertia computation.
BLOCK = 4096


@backend("sklearn")
class SklearnBackend:
    """Calls scikit-learn directly. All other backends are tested against it."""

    uses_gpu: ClassVar[bool] = False
    name, gpu = "sklearn", False

    def __init__(self) -> None:
        self.iterations = 0

    @staticmethod
    def problem() -> str | None:
        """Return None: scikit-learn is a dependency."""
        return None

    def to_device(self, X: Matrix, overwrite: bool = False) -> Matrix:  # noqa: ARG002  (X stays unmodified)
        """Return X itself: scikit-learn centres where needed."""
        return X

    def rows(self, on_device: Matrix) -> Matrix:
        """Return a mean-centred copy."""
        rows: Matrix = centred(on_device)
        return rows

    def kmeans(self, on_device: Matrix, K: int, n_init: int, seed: int, sample: Positions | None = None) -> Starts:
        """Run `sklearn.cluster.KMeans` once per k-means++ start, otherwise with its defaults.

        All starts share one random state, as inside scikit-learn: the first start equals `n_init=1`, and the best
        one equals the result with `n_init` exactly, unless several are equally good.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        state = np.random.RandomState(seed)
        fitted = on_device if sample is None else on_device[sample]
        with warnings.catch_warnings():
            # Expected with fewer distinct rows than clusters.
            warnings.simplefilter("ignore", ConvergenceWarning)
            models = [KMeans(K, init="k-means++", n_init=1, random_state=state).fit(fitted) for _ in range(n_init)]
        self.iterations += sum(int(model.n_iter_) for model in models)
        labels = [model.labels_ if sample is None else model.predict(on_device) for model in models]
        inertia = [_inertia(on_device, m.cluster_centers_, each) for m, each in zip(models, labels, strict=True)]
        return Starts(np.stack(labels), np.array(inertia))

    def neighbors(self, on_device: Matrix, k: int, queries: Positions | None = None) -> Positions:
        """Search by brute force (`sklearn.neighbors.NearestNeighbors`), which is exact in any number of features."""
        from sklearn.neighbors import NearestNeighbors

        if queries is None:
            neighbors: NDArray[np.int64] = (
                NearestNeighbors(n_neighbors=k, algorithm="brute").fit(on_device).kneighbors(return_distance=False)
            )
            return neighbors
        model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(on_device)
        return drop_self(model.kneighbors(on_device[queries], return_distance=False), queries)

    def predict(self, on_device: Matrix, y: Labels, folds: Sequence[Fold]) -> list[Labels]:
        """Fit `sklearn.linear_model.LogisticRegression` (L-BFGS) penalty by penalty, each from the last solution."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        predictions = []
        for fold in folds:
            scaler = StandardScaler().fit(on_device[fold.train])
            X, X_test = scaler.transform(on_device[fold.train]), scaler.transform(on_device[fold.test])
            model = LogisticRegression(warm_start=True, tol=1e-3, max_iter=200)
            with warnings.catch_warnings():
                # With weak penalties on separable classes the loss still falls long after the predictions are stable.
                warnings.simplefilter("ignore", ConvergenceWarning)
                by_strength = [model.set_params(C=C).fit(X, y[fold.train]).predict(X_test) for C in fold.strengths]
            predictions.append(np.stack(by_strength))
        return predictions


def _inertia(X: Matrix, centres: Matrix, labels: Labels) -> float:
    """Sum of squared distances to the centres, accumulated in float64; scikit-learn accumulates in float32."""
    blocks = [slice(first, first + BLOCK) for first in range(0, len(X), BLOCK)]
    return float(sum(np.square(X[block] - centres[labels[block]]).sum(dtype=np.float64) for block in blocks))
