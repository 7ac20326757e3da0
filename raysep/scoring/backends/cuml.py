"""The cuML backend, on the GPU of the process. Written against the documented API (26.2 and newer)."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.backend import Fold, Labels, Matrix, Positions, Starts, check, drop_self
from raysep.scoring.backends import backend
from raysep.scoring.centring import centred

# Queries per neighbour search; halved when memory runs out.
QUERIES = 16384


@backend("cuml")
class CumlBackend:
    """Computes every score from one copy of the layer on the GPU.

    A seed doesn't make cuML bit-reproducible. Its k-means crashes the process for N < K and returns a single cluster
    for NaN, so both are checked first.
    """

    uses_gpu: ClassVar[bool] = True
    name, gpu = "cuml", True

    def __init__(self) -> None:
        self.iterations = 0

    @staticmethod
    def problem() -> str | None:
        """Return what is missing, the cuML package or a GPU; None if nothing is missing."""
        if importlib.util.find_spec("cuml") is None:
            return "cuML is not installed: pip install 'raysep[gpu]'"
        import torch

        return None if torch.cuda.is_available() else "no NVIDIA GPU in this process"

    def to_device(self, X: Matrix, overwrite: bool = False) -> Any:
        """Copy to a cupy array, mean-centred to avoid cancellation in cuML's float32 dot products."""
        import cupy

        check(X, more_than=0)
        return cupy.asarray(centred(X, X if overwrite else None))

    def rows(self, on_device: Any) -> Matrix:
        """Copy the rows back to the host."""
        host: Matrix = on_device.get()
        return host

    def kmeans(self, on_device: Any, K: int, n_init: int, seed: int, sample: Positions | None = None) -> Starts:
        """Run `cuml.cluster.KMeans` once per start. All arguments are explicit, as cuML's defaults differ."""
        from cuml.cluster import KMeans

        fitted = on_device if sample is None else on_device[sample]
        if len(fitted) < K:
            raise ValueError(f"expected {K} rows or more, got {len(fitted)}")
        models = [
            KMeans(
                n_clusters=K, init="k-means++", n_init=1, random_state=seed + start, max_iter=300, output_type="numpy"
            ).fit(fitted)
            for start in range(n_init)
        ]
        self.iterations += sum(int(model.n_iter_) for model in models)
        if sample is None:
            labels, inertia = [model.labels_ for model in models], [model.inertia_ for model in models]
        else:
            labels, inertia = [m.predict(on_device) for m in models], [-m.score(on_device) for m in models]
        return Starts(
            np.stack([np.asarray(start).astype(np.int64) for start in labels]), np.array([float(x) for x in inertia])
        )

    def neighbors(self, on_device: Any, k: int, queries: Positions | None = None) -> Positions:
        """Search k + 1 neighbours by brute force (`cuml.neighbors.NearestNeighbors`) and drop the row itself."""
        from cuml.neighbors import NearestNeighbors

        if len(on_device) <= k:
            raise ValueError(f"expected more than {k} rows, got {len(on_device)}")
        positions = np.arange(len(on_device)) if queries is None else queries
        model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", output_type="numpy").fit(on_device)

        def search(batch: Positions) -> NDArray[np.int64]:
            return np.asarray(model.kneighbors(on_device[batch], return_distance=False)).astype(np.int64)

        return drop_self(in_batches(search, positions, QUERIES), positions)

    def predict(self, on_device: Any, y: Labels, folds: Sequence[Fold]) -> list[Labels]:
        """Fit `cuml.linear_model.LogisticRegression` (quasi-Newton) once per penalty: cuML has no warm start."""
        from cuml.linear_model import LogisticRegression
        from cuml.preprocessing import StandardScaler

        predictions = []
        for fold in folds:
            scaler = StandardScaler().fit(on_device[fold.train])
            X, X_test = scaler.transform(on_device[fold.train]), scaler.transform(on_device[fold.test])
            classes, index = np.unique(y[fold.train], return_inverse=True)
            target = index.astype(np.int32)
            by_strength = [
                LogisticRegression(C=C, max_iter=1000, output_type="numpy").fit(X, target).predict(X_test)
                for C in fold.strengths
            ]
            predictions.append(np.stack([classes[np.asarray(predicted).astype(np.int64)] for predicted in by_strength]))
        return predictions


def in_batches(search: Callable[[Positions], NDArray[np.int64]], queries: Positions, at_once: int) -> NDArray[np.int64]:
    """Run a search in batches, halving the batch size when GPU memory runs out.

    Raises:
        MemoryError: one query alone doesn't fit in it.
    """
    neighbors, first = [], 0
    while first < len(queries):
        try:
            neighbors.append(search(queries[first : first + at_once]))
        except MemoryError:
            if at_once == 1:
                raise
            at_once = max(1, at_once // 2)
        else:
            first += at_once
    return np.concatenate(neighbors)
