"""What a backend does for the metrics. N images, D features, K clusters or classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.integer[Any]]


# Relative differences that are rounding of float32 distances: backends agree to some 1e-8.
SAME_INERTIA = 5e-7


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
        """(N,) clusters of the start with the least inertia; of several within rounding of it, the first.

        scikit-learn takes the one that rounding makes the least.
        """
        within = self.inertia <= self.inertia.min() * (1 + SAME_INERTIA)
        found: Labels = self.labels[int(within.argmax())]
        return found


@dataclass(frozen=True)
class Fold:
    """Images to train on, images to predict, and the penalties to do it with.

    Attributes:
        train, test: positions.
        strengths: values of C, the inverse of the penalty, from the strongest penalty (smallest C) up.
    """

    train: Positions
    test: Positions
    strengths: Sequence[float]


class Backend(Protocol):
    """Computes clusters, neighbours and fits.

    Attributes:
        uses_gpu: whether a GPU is of use to it.
        name: in the scores.
        gpu: whether its memory is that of a GPU.
        iterations: Lloyd iterations of all calls so far.
    """

    uses_gpu: ClassVar[bool]
    name: str
    gpu: bool
    iterations: int

    @staticmethod
    def problem() -> str | None:
        """Why it can't be used in this process; None if it can."""
        ...

    def place(self, X: Matrix, own: bool = False) -> Any:
        """(N, D) finite float32 where and as the other methods want it: on the device once, used for everything.

        Args:
            own: X may be changed.
        """
        ...

    def rows(self, placed: Any) -> Matrix:
        """(N, D) on the host, less their mean: what metrics that no backend computes are made from."""
        ...

    def kmeans(self, placed: Any, K: int, n_init: int, seed: int, sample: Positions | None = None) -> Starts:
        """The clusters of `n_init` k-means++ starts.

        Args:
            placed: N >= K rows.
            sample: K or more positions that the centres are found on; all rows are then assigned to them.
        """
        ...

    def neighbors(self, placed: Any, k: int, queries: Positions | None = None) -> Positions:
        """(Q, k) Euclidean neighbours among all rows, nearest first, the row itself left out.

        Args:
            k: less than N.
            queries: (Q,) positions of the rows whose neighbours are asked for; unset: all.
        """
        ...

    def predict(self, placed: Any, y: Labels, folds: Sequence[Fold]) -> list[Labels]:
        """Predictions of L2 multinomial logistic regressions on features that each fold's training rows standardise.

        Returns:
            For each fold (strengths, test rows) labels.
        """
        ...


def drop_self(found: NDArray[np.int64], queries: Positions) -> NDArray[np.int64]:
    """Leave each row's own position out of its neighbours.

    Args:
        found: (Q, k + 1) positions, nearest first.
        queries: (Q,) positions of the rows themselves.

    Returns:
        (Q, k). A row that isn't among its own neighbours, because more than k others are equal to it,
        loses the last one instead.

    >>> drop_self(np.array([[0, 2], [0, 2], [2, 1]]), np.arange(3)).ravel().tolist()
    [2, 0, 1]
    """
    own = found == queries[:, None]
    own[~own.any(axis=1), -1] = True
    kept: NDArray[np.int64] = found[~own].reshape(len(found), -1)
    return kept


def check(X: Any, more_than: int) -> None:
    """Raise ValueError for what would crash cuML or be answered wrongly."""
    if len(X) <= more_than:
        raise ValueError(f"expected more than {more_than} rows, got {len(X)}")
    if not np.isfinite(X).all():
        raise ValueError("expected finite values, got NaN or infinity")
