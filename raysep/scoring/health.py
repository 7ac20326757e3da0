"""Whether a layer's embedding is fit to be scored, and how many classes it would say there are.

N images, D features. Nothing here looks at labels, but that as many clusters are made as there are classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.backend import Backend
from raysep.scoring.centring import centred
from raysep.scoring.split_half import COMPONENTS, adjusted_rand, components

Matrix = NDArray[np.float32]

# Silhouettes are of at most this many images: they need all distances between them.
SILHOUETTE_IMAGES = 1000
SILHOUETTE_STARTS = 3
# Rows that are looked at at once.
BLOCK = 4096


def nonfinite_rows(X: Matrix) -> int:
    """Images with NaN or infinity in their vector.

    >>> nonfinite_rows(np.array([[1, np.nan], [np.inf, np.inf], [1, 2]], np.float32))
    2
    """
    return sum(int((~np.isfinite(X[first : first + BLOCK]).all(axis=1)).sum()) for first in range(0, len(X), BLOCK))


def constant_features(X: Matrix) -> int:
    """Features that are the same for every image.

    >>> constant_features(np.array([[1, 2], [1, 3]], np.float32))
    1
    """
    return int((X.min(axis=0) == X.max(axis=0)).sum())


def effective_rank(rows: Matrix) -> float | None:
    """In how many directions the images differ: the exponential of the entropy of the singular values.

    Of rows around their mean, between 1 and min(N - 1, D) (Roy and Vetterli 2007, 15th EUSIPCO). None where all
    images are the same.

    >>> effective_rank(np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32))
    2.0
    """
    scatter = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
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
    K = int(labels.max()) + 1
    pairs = [a.astype(np.int64) * K + b for i, a in enumerate(labels) for b in labels[:i]]
    tables = np.stack([np.bincount(pair, minlength=K * K).reshape(K, K) for pair in pairs])
    return float(np.mean(adjusted_rand(tables.astype(np.float64))))


def estimated_classes(X: Matrix, backend: Backend, seed: int, largest: int) -> int | None:
    """The number of clusters with the highest mean silhouette (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7).

    For category discovery, where the number of classes is not known. Silhouettes can't say 1.

    Args:
        X: (N, D); at most `SILHOUETTE_IMAGES` of the images, drawn at random, are looked at.
        backend: clusters them.
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
    placed = backend.place(components(moved, max(COMPONENTS, 2 * largest)))
    found = {
        k: _silhouette(distances, backend.kmeans(placed, k, SILHOUETTE_STARTS, seed).best)
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
