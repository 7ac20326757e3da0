"""What chance gives: the mean of a score over all shuffles of the labels, exactly.

N images, K classes. Only for the linear probe there is no formula; it is fitted on labels shuffled once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]


def of_clusters(name: str, y: Labels, clusters: Labels) -> float:
    """Of `nmi`, `ami` or `ari`. A shuffle changes neither entropy, and the other two are adjusted to be 0.

    >>> round(of_clusters("nmi", np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])), 6)
    0.333333
    """
    from scipy.stats import entropy
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    if len(np.unique(y)) == len(y) == len(np.unique(clusters)):
        # Each image is alone in its class and in its cluster, however they are shuffled.
        return 1.0
    if name != "nmi":
        return 0.0
    mean_entropy = sum(entropy(np.unique(names, return_counts=True)[1]) for names in (y, clusters)) / 2
    mutual = expected_mutual_information(contingency_matrix(y, clusters), len(y))
    return float(mutual / mean_entropy) if mean_entropy > 0 else 0.0


def of_neighbors(y: Labels, reached: float = 1.0) -> float:
    """Of `knn_purity` and `nn1`: that another image has the label of an image.

    Args:
        y: (N,) labels, two or more.
        reached: the number of neighbours by what their count is divided by, where that is another one.

    >>> of_neighbors(np.array([0, 0, 1, 1]))
    0.3333333333333333
    """
    sizes = np.unique(y, return_counts=True)[1]
    return float((sizes * (sizes - 1)).sum() / (len(y) * (len(y) - 1)) * reached)


def of_r_precision(y: Labels) -> float:
    """Of `r_precision`: the same, over images that are not alone in their class.

    >>> of_r_precision(np.array([0, 0, 0, 1]))
    0.6666666666666666
    """
    sizes = np.unique(y, return_counts=True)[1]
    counted = sizes[sizes > 1]
    return float((counted * (counted - 1)).sum() / (counted.sum() * (len(y) - 1)))


def of_few_shot(y: Labels) -> float:
    """Of few-shot accuracies: labelled images of K classes are alike, whatever the classes' sizes.

    >>> of_few_shot(np.array([0, 0, 0, 1]))
    0.5
    """
    return 1 / len(np.unique(y))
