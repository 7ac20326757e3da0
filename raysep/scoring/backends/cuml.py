"""cuML on the process's GPU. Written against its documented interface (26.2 and newer)."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.backend import Fold, Labels, Matrix, Positions, Starts, check, drop_self
from raysep.scoring.backends import backend
from raysep.scoring.centring import centred

# Neighbours that are asked for in one call, until memory runs out.
QUERIES = 16384


@backend("cuml")
class CumlBackend:
    """One copy of a layer on the GPU serves every call.

    A seed doesn't make cuML bit-reproducible. Its k-means crashes the process for N < K and puts everything in one
    cluster for NaN, so both are checked before anything is placed or called.
    """

    uses_gpu: ClassVar[bool] = True
    name, gpu = "cuml", True

    def __init__(self) -> None:
        self.iterations = 0

    @staticmethod
    def problem() -> str | None:
        """No package, or no GPU."""
        if importlib.util.find_spec("cuml") is None:
            return "cuML is not installed: pip install 'raysep[gpu]'"
        import torch

        return None if torch.cuda.is_available() else "no NVIDIA GPU in this process"

    def place(self, X: Matrix, own: bool = False) -> Any:
        """A cupy array, around its mean: cuML's distances are float32 products, which centred rows keep exact."""
        import cupy

        check(X, more_than=0)
        return cupy.asarray(centred(X, X if own else None))

    def rows(self, placed: Any) -> Matrix:
        """Copied back."""
        host: Matrix = placed.get()
        return host

    def kmeans(self, placed: Any, K: int, n_init: int, seed: int, sample: Positions | None = None) -> Starts:
        """`cuml.cluster.KMeans`; its own defaults are one start and another seeding, so all is said."""
        from cuml.cluster import KMeans

        of = placed if sample is None else placed[sample]
        if len(of) < K:
            raise ValueError(f"expected {K} rows or more, got {len(of)}")
        models = [
            KMeans(
                n_clusters=K, init="k-means++", n_init=1, random_state=seed + start, max_iter=300, output_type="numpy"
            ).fit(of)
            for start in range(n_init)
        ]
        self.iterations += sum(int(model.n_iter_) for model in models)
        if sample is None:
            labels, inertia = [model.labels_ for model in models], [model.inertia_ for model in models]
        else:
            labels, inertia = [m.predict(placed) for m in models], [-m.score(placed) for m in models]
        return Starts(
            np.stack([np.asarray(one).astype(np.int64) for one in labels]), np.array([float(one) for one in inertia])
        )

    def neighbors(self, placed: Any, k: int, queries: Positions | None = None) -> Positions:
        """`cuml.neighbors.NearestNeighbors`, brute force, of k + 1 of which the row itself is dropped."""
        from cuml.neighbors import NearestNeighbors

        if len(placed) <= k:
            raise ValueError(f"expected more than {k} rows, got {len(placed)}")
        asked = np.arange(len(placed)) if queries is None else queries
        model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", output_type="numpy").fit(placed)

        def ask(some: Positions) -> NDArray[np.int64]:
            return np.asarray(model.kneighbors(placed[some], return_distance=False)).astype(np.int64)

        return drop_self(in_batches(ask, asked, QUERIES), asked)

    def predict(self, placed: Any, y: Labels, folds: Sequence[Fold]) -> list[Labels]:
        """`cuml.linear_model.LogisticRegression` (quasi-Newton), one fit after another: it has no warm start."""
        from cuml.linear_model import LogisticRegression
        from cuml.preprocessing import StandardScaler

        found = []
        for fold in folds:
            scaler = StandardScaler().fit(placed[fold.train])
            X, X_test = scaler.transform(placed[fold.train]), scaler.transform(placed[fold.test])
            classes, index = np.unique(y[fold.train], return_inverse=True)
            target = index.astype(np.int32)
            paths = [
                LogisticRegression(C=C, max_iter=1000, output_type="numpy").fit(X, target).predict(X_test)
                for C in fold.strengths
            ]
            found.append(np.stack([classes[np.asarray(path).astype(np.int64)] for path in paths]))
        return found


def in_batches(ask: Callable[[Positions], NDArray[np.int64]], queries: Positions, at_once: int) -> NDArray[np.int64]:
    """Answers to queries, in batches that are halved where the GPU's memory runs out.

    Raises:
        MemoryError: not even one fits.
    """
    found, first = [], 0
    while first < len(queries):
        try:
            found.append(ask(queries[first : first + at_once]))
        except MemoryError:
            if at_once == 1:
                raise
            at_once = max(1, at_once // 2)
        else:
            first += at_once
    return np.concatenate(found)
