"""Formulas of the clustering and neighbour metrics, from labels and clusters or neighbours.

N images, D features, K classes present; y is (N,) labels, any integers. No formula uses X: a backend computes
clusters and neighbours once for all metrics. Classifier accuracies are in `probe.py` and `few_shot.py`. All values
lie between 0 and 1, higher is better, except `ami` and `ari`, which are 0 at chance level and may be negative. A
metric that isn't defined for its input is None, not 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
# Whether a neighbour has the label of its image; a share between 0 and 1 among equal vectors.
Hits = NDArray[np.bool_] | NDArray[np.float32]


def nmi(y: Labels, clusters: Labels) -> float | None:
    """Normalized mutual information, arithmetic mean: the paper's g_i (arXiv:2405.01524, section 3).

    Args:
        y: (N,) labels.
        clusters: (N,) cluster of each image.

    Returns:
        0 to 1; 0 if all images are in one cluster; None for fewer than two classes.

    >>> nmi(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    if not _two_classes(y):
        return None
    return float(normalized_mutual_info_score(y, clusters, average_method="arithmetic"))


def ami(y: Labels, clusters: Labels) -> float | None:
    """Mutual information adjusted for chance (Vinh, Epps, Bailey 2010), arithmetic mean.

    Comparable between different K, which `nmi` isn't: 0 in expectation for random clusters, 1 for a
    perfect match. None for fewer than two classes.

    >>> round(ami(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])), 2)
    -0.5
    """
    from sklearn.metrics import adjusted_mutual_info_score

    if not _two_classes(y):
        return None
    return float(adjusted_mutual_info_score(y, clusters, average_method="arithmetic"))


def ari(y: Labels, clusters: Labels) -> float | None:
    """Rand index adjusted for chance (Hubert, Arabie 1985, doi:10.1007/BF01908075).

    0 in expectation for random clusters, 1 for a perfect match, -0.5 at the least. None for fewer than
    two classes.

    >>> ari(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    -0.5
    """
    from sklearn.metrics import adjusted_rand_score

    if not _two_classes(y):
        return None
    return float(adjusted_rand_score(y, clusters))


def knn_purity(y: Labels, hits: Hits, k: int, divisor: int | None = None) -> float | None:
    """Mean over images of the share of the k nearest neighbours with the image's label.

    Args:
        y: (N,) labels.
        hits: (Q, at least k) whether each neighbour, nearest first, has the label of its image: `ties.hits`.
        k: number of neighbours that count.
        divisor: divisor of the count; unset: k. The paper divides by 500 even where fewer neighbours exist, so
            that small classes can't reach 1.

    Returns:
        0 to 1; None for fewer than two classes or k < 1.

    >>> knn_purity(np.array([0, 0, 1]), np.array([[True, False], [True, False], [False, False]]), k=1)
    0.6666666666666666
    """
    if k < 1 or not _two_classes(y):
        return None
    if hits.shape[1] < k:
        raise ValueError(f"expected {k} or more neighbours of each image, got {hits.shape[1]}")
    return float(hits[:, :k].sum(axis=1, dtype=np.float64).mean() / (divisor or k))


def nn1(y: Labels, hits: Hits) -> float | None:
    """Share of images whose nearest neighbour has their label: `knn_purity` with k = 1."""
    return knn_purity(y, hits, k=1)


def r_precision(y: Labels, hits: Hits, queries: NDArray[np.int64] | None = None) -> float | None:
    """Purity of the R nearest neighbours, where R is the size of the image's class minus 1.

    Unlike `knn_purity`, it reaches 1 whatever the class sizes (R-precision of Musgrave, Belongie, Lim 2020,
    arXiv:2003.08505). Images of singleton classes have R = 0 and don't count.

    Args:
        y: (N,) labels.
        hits: (Q, at least the largest R) as for `knn_purity`.
        queries: (Q,) positions of the query images; unset: all.

    Returns:
        0 to 1; None for fewer than two classes or where all classes are singletons.

    >>> hits = np.array([[1, 0], [0, 1], [1, 1], [1, 1], [1, 0]], bool)
    >>> r_precision(np.array([0, 0, 1, 1, 1]), hits)
    0.7
    """
    _, index, sizes = np.unique(y, return_inverse=True, return_counts=True)
    R = sizes[index] - 1
    R = R if queries is None else R[queries]
    if not _two_classes(y) or R.max() < 1:
        return None
    if hits.shape[1] < R.max():
        raise ValueError(f"expected {R.max()} or more neighbours of each image, got {hits.shape[1]}")
    width = int(R.max())
    matches = (hits[:, :width] * (np.arange(width) < R[:, None])).sum(axis=1, dtype=np.float64)
    counted = R > 0
    return float((matches[counted] / R[counted]).mean())


def _two_classes(y: Labels) -> bool:
    return bool(len(y)) and bool((y != y[0]).any())
