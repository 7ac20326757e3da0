"""The interface of backends. N images, D features, K clusters or classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.integer[Any]]


# Relative inertia difference within float32 rounding error; backends agree to about 1e-8.
SAME_INERTIA = 5e-7


@dataclass(frozen=True)
class Starts:
    """Results of k-means from S random starts.

    Attributes:
        labels: (S, N) cluster of each row, per start.
        inertia: (S,) sum of squared distances to the cluster centres, per start.
    """

    labels: Labels
    inertia: NDArray[np.float64]

    @property
    def best(self) -> Labels:
        """(N,) clusters of the first start whose inertia is the minimum, up to float32 rounding.

        scikit-learn compares without a tolerance, so there, rounding decides between equally good starts.
        """
        within = self.inertia <= self.inertia.min() * (1 + SAME_INERTIA)
        labels: Labels = self.labels[int(within.argmax())]
        return labels


@dataclass(frozen=True)
class Fold:
    """A train/test split, and the inverse penalties C to fit with.

    Attributes:
        train, test: row positions.
        strengths: values of C, the inverse of the penalty, in increasing order: strongest penalty first.
    """

    train: Positions
    test: Positions
    strengths: Sequence[float]


class Backend(Protocol):
    """Computes k-means clusters, nearest neighbours and logistic regressions.

    Attributes:
        uses_gpu: whether the backend can use a GPU.
        name: the backend's name in the scores.
        gpu: whether this instance computes in GPU memory.
        iterations: Lloyd iterations of all calls so far.
    """

    uses_gpu: ClassVar[bool]
    name: str
    gpu: bool
    iterations: int

    @staticmethod
    def problem() -> str | None:
        """Return why this process can't use the backend, or None if it can."""
        ...

    def to_device(self, X: Matrix, overwrite: bool = False) -> Any:
        """Copy X to the device once, in the form that other methods take as `on_device`.

        Args:
            X: (N, D) float32, finite.
            overwrite: the backend may modify X.
        """
        ...

    def rows(self, on_device: Any) -> Matrix:
        """(N, D) mean-centred rows on the host, for metrics that are computed outside the backend."""
        ...

    def kmeans(self, on_device: Any, K: int, n_init: int, seed: int, sample: Positions | None = None) -> Starts:
        """Cluster the rows from `n_init` k-means++ starts.

        Args:
            on_device: N >= K rows.
            sample: positions of at least K rows to fit the centres on; all N rows are then assigned to them.
        """
        ...

    def neighbors(self, on_device: Any, k: int, queries: Positions | None = None) -> Positions:
        """(Q, k) positions of the Euclidean nearest neighbours among all rows, nearest first, without the row itself.

        Args:
            k: less than N.
            queries: (Q,) positions of the query rows; unset: all rows.
        """
        ...

    def predict(self, on_device: Any, y: Labels, folds: Sequence[Fold]) -> list[Labels]:
        """Predict the test rows of each fold by L2 multinomial logistic regression.

        Features are standardised with the mean and variance of the fold's training rows.

        Returns:
            For each fold, predicted labels of shape (strengths, test rows).
        """
        ...


def drop_self(neighbors: NDArray[np.int64], queries: Positions) -> NDArray[np.int64]:
    """Remove each query row from its own neighbours.

    Args:
        neighbors: (Q, k + 1) positions, nearest first.
        queries: (Q,) positions of the query rows.

    Returns:
        (Q, k). If a query is missing from its list because it has more than k duplicates, its last (farthest) one is
        removed.

    >>> drop_self(np.array([[0, 2], [0, 2], [2, 1]]), np.arange(3)).ravel().tolist()
    [2, 0, 1]
    """
    is_self = neighbors == queries[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    others: NDArray[np.int64] = neighbors[~is_self].reshape(len(neighbors), -1)
    return others


def check(X: Any, more_than: int) -> None:
    """Raise ValueError unless X has `more_than` rows or more and is finite: cuML would crash or give wrong results."""
    if len(X) <= more_than:
        raise ValueError(f"expected more than {more_than} rows, got {len(X)}")
    if not np.isfinite(X).all():
        raise ValueError("expected finite values, got NaN or infinity")
