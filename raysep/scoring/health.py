"""Health checks of a layer's embedding, and an estimate of the number of classes.

N images, D features. No function uses labels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.backend import Backend
from raysep.scoring.centring import centred
from raysep.scoring.split_half import COMPONENTS, adjusted_rand, components

Matrix = NDArray[np.float32]

# Largest sample for silhouettes, which need all pairwise distances.
SILHOUETTE_IMAGES = 1000
SILHOUETTE_STARTS = 3
# Rows per block.
BLOCK = 4096


def nonfinite_rows(X: Matrix) -> int:
    """Number of images with NaN or infinity in their vector.

    >>> nonfinite_rows(np.array([[1, np.nan], [np.inf, np.inf], [1, 2]], np.float32))
    2
    """
    return sum(int((~np.isfinite(X[first : first + BLOCK]).all(axis=1)).sum()) for first in range(0, len(X), BLOCK))


def constant_features(X: Matrix) -> int:
    """Number of features with the same value in every image.

    >>> constant_features(np.array([[1, 2], [1, 3]], np.float32))
    1
    """
    return int((X.min(axis=0) == X.max(axis=0)).sum())


def effective_rank(rows: Matrix) -> float | None:
    """Effective rank of (N, D) mean-centred rows: the exponential of the entropy of the singular values.

    Between 1 and min(N - 1, D) (Roy and Vetterli 2007, 15th EUSIPCO); None where all images are the same.

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
    """Mean adjusted Rand index over all pairs of k-means starts; 1 if all agree, None for fewer than two starts.

    Args:
        labels: (S, N) clusters of each start.
    """
    if len(labels) < 2:
        return None
    K = int(labels.max()) + 1
    pairs = [a.astype(np.int64) * K + b for i, a in enumerate(labels) for b in labels[:i]]
    tables = np.stack([np.bincount(pair, minlength=K * K).reshape(K, K) for pair in pairs])
    return float(np.mean(adjusted_rand(tables.astype(np.float64))))


def estimated_classes(X: Matrix, backend: Backend, seed: int, largest: int) -> int | None:
    """The number of clusters with the highest mean silhouette (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7).

    For category discovery, where the number of classes is unknown. Silhouettes can't detect a single class.

    Args:
        X: (N, D); a random sample of at most `SILHOUETTE_IMAGES` images is used.
        backend: clusters the sample.
        seed: seed of the sample and of the k-means starts.
        largest: largest number of clusters to try; at most the number of images minus 1 is tried.

    Returns:
        2 or more; None for fewer than three images, or where all are the same.
    """
    sample = np.sort(np.random.default_rng(seed).permutation(len(X))[:SILHOUETTE_IMAGES])
    X = X[sample]
    rows = centred(X)
    squares = (rows.astype(np.float64) ** 2).sum(axis=1)
    distances = np.sqrt(np.clip(squares[:, None] + squares - 2 * (rows @ rows.T), 0, None))
    np.fill_diagonal(distances, 0)
    if len(X) < 3 or not distances.any():
        return None
    on_device = backend.to_device(components(rows, max(COMPONENTS, 2 * largest)))
    silhouettes = {
        k: _silhouette(distances, backend.kmeans(on_device, k, SILHOUETTE_STARTS, seed).best)
        for k in range(2, min(largest, len(X) - 1) + 1)
    }
    return max(silhouettes, key=lambda k: silhouettes[k])


def _silhouette(distances: NDArray[np.float64], clusters: NDArray[np.integer[Any]]) -> float:
    _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return -1.0
    sums = distances @ np.eye(len(sizes))[index]
    rows = np.arange(len(index))
    within = sums[rows, index] / np.maximum(sizes[index] - 1, 1)
    between = sums / sizes
    between[rows, index] = np.inf
    nearest = between.min(axis=1)
    widths = (nearest - within) / np.maximum(np.maximum(within, nearest), np.finfo(np.float64).tiny)
    # Singleton clusters have silhouette 0.
    return float(np.where(sizes[index] > 1, widths, 0.0).mean())
