"""The reference: scikit-learn on the CPUs that the process may use."""

import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.backend import Fold, Labels, Matrix, Positions, Starts, drop_self
from raysep.scoring.backends import backend
from raysep.scoring.centring import centred

# Rows whose distances are held at once.
BLOCK = 4096


@backend("sklearn")
class SklearnBackend:
    """Calls of scikit-learn, one after another. Every other backend is held to it."""

    uses_gpu: ClassVar[bool] = False
    name, gpu = "sklearn", False

    def __init__(self) -> None:
        self.iterations = 0

    @staticmethod
    def problem() -> str | None:
        """None: scikit-learn is always there."""
        return None

    def place(self, X: Matrix, own: bool = False) -> Matrix:  # noqa: ARG002  (nothing is changed)
        """As it is: scikit-learn centres for itself."""
        return X

    def rows(self, placed: Matrix) -> Matrix:
        """A centred copy."""
        moved: Matrix = centred(placed)
        return moved

    def kmeans(self, placed: Matrix, K: int, n_init: int, seed: int, sample: Positions | None = None) -> Starts:
        """`sklearn.cluster.KMeans` with k-means++ starts, otherwise its defaults.

        One random state goes through all starts, as it does inside scikit-learn: the first one is that of
        `n_init=1`, and the best one that of `n_init`, to the digit, unless others are as good.
        """
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        state = np.random.RandomState(seed)
        of = placed if sample is None else placed[sample]
        with warnings.catch_warnings():
            # Fewer distinct rows than clusters: the clusters found are what there is to find.
            warnings.simplefilter("ignore", ConvergenceWarning)
            models = [KMeans(K, init="k-means++", n_init=1, random_state=state).fit(of) for _ in range(n_init)]
        self.iterations += sum(int(model.n_iter_) for model in models)
        labels = [model.labels_ if sample is None else model.predict(placed) for model in models]
        inertia = [_inertia(placed, m.cluster_centers_, found) for m, found in zip(models, labels, strict=True)]
        return Starts(np.stack(labels), np.array(inertia))

    def neighbors(self, placed: Matrix, k: int, queries: Positions | None = None) -> Positions:
        """`sklearn.neighbors.NearestNeighbors`, brute force: exact in any number of features."""
        from sklearn.neighbors import NearestNeighbors

        if queries is None:
            found: NDArray[np.int64] = (
                NearestNeighbors(n_neighbors=k, algorithm="brute").fit(placed).kneighbors(return_distance=False)
            )
            return found
        model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(placed)
        return drop_self(model.kneighbors(placed[queries], return_distance=False), queries)

    def predict(self, placed: Matrix, y: Labels, folds: Sequence[Fold]) -> list[Labels]:
        """`sklearn.linear_model.LogisticRegression` (L-BFGS), each fit started from the one before."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        found = []
        for fold in folds:
            scaler = StandardScaler().fit(placed[fold.train])
            X, X_test = scaler.transform(placed[fold.train]), scaler.transform(placed[fold.test])
            model = LogisticRegression(warm_start=True, tol=1e-3, max_iter=200)
            with warnings.catch_warnings():
                # Weak penalties on separable classes go on improving the loss long after the predictions stand.
                warnings.simplefilter("ignore", ConvergenceWarning)
                paths = [model.set_params(C=C).fit(X, y[fold.train]).predict(X_test) for C in fold.strengths]
            found.append(np.stack(paths))
        return found


def _inertia(X: Matrix, centres: Matrix, labels: Labels) -> float:
    """Sum of squared distances to the centres, in float64: scikit-learn adds them up in X's own precision."""
    blocks = [slice(first, first + BLOCK) for first in range(0, len(X), BLOCK)]
    return float(sum(np.square(X[block] - centres[labels[block]]).sum(dtype=np.float64) for block in blocks))
