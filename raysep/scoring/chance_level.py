"""Chance levels: the exact mean of a score over all shuffles of the labels.

N images, K classes. The linear probe has no formula: its chance level is a fit on labels shuffled once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]


def of_clusters(name: str, y: Labels, clusters: Labels) -> float:
    """Chance level of `nmi`, `ami` or `ari`. Shuffles leave both entropies of NMI unchanged; AMI and ARI have mean 0.

    >>> round(of_clusters("nmi", np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])), 6)
    0.333333
    """
    from scipy.stats import entropy
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    if len(np.unique(y)) == len(y) == len(np.unique(clusters)):
        # Every shuffle has singleton classes and clusters, which match perfectly.
        return 1.0
    if name != "nmi":
        return 0.0
    mean_entropy = sum(entropy(np.unique(assignment, return_counts=True)[1]) for assignment in (y, clusters)) / 2
    mutual = expected_mutual_information(contingency_matrix(y, clusters), len(y))
    return float(mutual / mean_entropy) if mean_entropy > 0 else 0.0


def of_neighbors(y: Labels, highest: float = 1.0) -> float:
    """Chance level of `knn_purity` and `nn1`: the probability that two random images share a label.

    Args:
        y: (N,) labels, N >= 2.
        highest: the highest possible purity, k / divisor in `knn_purity`.

    >>> of_neighbors(np.array([0, 0, 1, 1]))
    0.3333333333333333
    """
    sizes = np.unique(y, return_counts=True)[1]
    return float((sizes * (sizes - 1)).sum() / (len(y) * (len(y) - 1)) * highest)


def of_r_precision(y: Labels) -> float:
    """Chance level of `r_precision`: as `of_neighbors`, but averaged over images of classes with two images or more.

    >>> of_r_precision(np.array([0, 0, 0, 1]))
    0.6666666666666666
    """
    sizes = np.unique(y, return_counts=True)[1]
    counted = sizes[sizes > 1]
    return float((counted * (counted - 1)).sum() / (counted.sum() * (len(y) - 1)))


def of_few_shot(y: Labels) -> float:
    """Chance level of few-shot accuracies: 1/K, as each class has the same number of labelled images.

    >>> of_few_shot(np.array([0, 0, 0, 1]))
    0.5
    """
    return 1 / len(np.unique(y))
