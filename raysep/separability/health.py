"""Whether a layer's embedding is fit to be scored, and how many classes it would say there are.

N images, D features. Nothing here looks at labels, but that as many clusters are made as there are classes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from raysep.separability.backends import Engine
from raysep.separability.centring import centred
from raysep.separability.halves import COMPONENTS, components
from raysep.separability.layer import Layer

Matrix = NDArray[np.float32]

# Silhouettes are of at most this many images: they need all distances between them.
SILHOUETTE_IMAGES = 1000
SILHOUETTE_STARTS = 3


def nonfinite_rows(X: Matrix) -> int:
    """Images with NaN or infinity in their vector.

    >>> nonfinite_rows(np.array([[1, np.nan], [np.inf, np.inf], [1, 2]], np.float32))
    2
    """
    return int((~np.isfinite(X).all(axis=1)).sum())


def constant_features(X: Matrix) -> int:
    """Features that are the same for every image.

    >>> constant_features(np.array([[1, 2], [1, 3]], np.float32))
    1
    """
    return int((X[:1] == X).all(axis=0).sum())


def duplicate_rows(X: Matrix) -> int:
    """Images whose vector is that of an earlier image, bit for bit.

    >>> duplicate_rows(np.array([[1, 2], [1, 2], [1, 3], [1, 2]], np.float32))
    2
    """
    rows = np.ascontiguousarray(X)
    return len(rows) - len({row.tobytes() for row in rows})


def effective_rank(X: Matrix) -> float | None:
    """In how many directions the images differ: the exponential of the entropy of the singular values.

    Of the centred X, between 1 and min(N - 1, D) (Roy and Vetterli 2007, 15th EUSIPCO). None where all
    images are the same.

    >>> effective_rank(np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32))
    2.0
    """
    moved = centred(X)
    scatter = moved @ moved.T if len(X) < X.shape[1] else moved.T @ moved
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(scatter.astype(np.float64)), 0, None))
    if singular.sum() == 0:
        return None
    p = singular / singular.sum()
    return float(np.round(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()), 6))


def start_agreement(labels: NDArray[np.integer[Any]]) -> float | None:
    """How far k-means starts agree: the mean adjusted Rand index over all pairs of starts; 1 if all do.

    Args:
        labels: (S, N) clusters of each start. None for fewer than two starts.
    """
    if len(labels) < 2:
        return None
    pairs = [adjusted_rand_score(a, b) for i, a in enumerate(labels) for b in labels[:i]]
    return float(np.mean(pairs))


def estimated_classes(X: Matrix, engine: Engine, seed: int, largest: int) -> int | None:
    """The number of clusters with the highest mean silhouette (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7).

    For category discovery, where the number of classes is not known. Silhouettes can't say 1.

    Args:
        X: (N, D); at most `SILHOUETTE_IMAGES` of the images, drawn at random, are looked at.
        engine: clusters them.
        seed: of the draw and of the starts.
        largest: numbers from 2 to this, less than the number of images, are tried.

    Returns:
        None for fewer than three images, or where all are the same.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(X))[:SILHOUETTE_IMAGES])
    X = X[chosen]
    moved = centred(X)
    squares = (moved.astype(np.float64) ** 2).sum(axis=1)
    distances = np.sqrt(np.clip(squares[:, None] + squares - 2 * (moved @ moved.T), 0, None))
    np.fill_diagonal(distances, 0)
    if len(X) < 3 or not distances.any():
        return None
    reduced = components(X, max(COMPONENTS, 2 * largest))
    found = {
        k: _silhouette(distances, engine.kmeans(reduced, k, SILHOUETTE_STARTS, seed).best)
        for k in range(2, min(largest, len(X) - 1) + 1)
    }
    return max(found, key=lambda k: found[k])


def _silhouette(distances: NDArray[np.float64], clusters: NDArray[np.integer[Any]]) -> float:
    _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return -1.0
    sums = distances @ np.eye(len(sizes))[index]
    rows = np.arange(len(index))
    own = sums[rows, index] / np.maximum(sizes[index] - 1, 1)
    others = sums / sizes
    others[rows, index] = np.inf
    nearest = others.min(axis=1)
    widths = (nearest - own) / np.maximum(np.maximum(own, nearest), np.finfo(np.float64).tiny)
    # An image alone in its cluster has silhouette 0.
    return float(np.where(sizes[index] > 1, widths, 0.0).mean())


def _estimated(layer: Layer) -> float | None:
    largest = layer.settings.max_classes
    return None if largest is None else estimated_classes(layer.X, layer.engine, layer.seed, largest)


# Diagnostics that can be told of any X, and those that need finite values and two classes.
ALWAYS: dict[str, Callable[[Layer], float | None]] = {
    "nonfinite_rows": lambda layer: nonfinite_rows(layer.X),
    "constant_features": lambda layer: constant_features(layer.X),
    "duplicate_rows": lambda layer: duplicate_rows(layer.X),
}
IF_SCORABLE: dict[str, Callable[[Layer], float | None]] = {
    "effective_rank": lambda layer: effective_rank(layer.X),
    "empty_clusters": lambda layer: layer.n_classes - len(np.unique(layer.clusters)),
    "start_agreement": lambda layer: start_agreement(layer.starts.labels),
    "estimated_classes": _estimated,
}


def diagnose(layer: Layer, name: str) -> float | None:
    """One of `names.DIAGNOSTICS`; None where the layer can't be asked that."""
    if name in ALWAYS:
        return ALWAYS[name](layer)
    return IF_SCORABLE[name](layer) if layer.scorable else None
