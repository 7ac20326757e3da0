"""Equal vectors: which neighbours they are of others must not depend on the order of the rows.

N images, D features, Q queries. Among neighbours that are equal vectors any order is as good as another; scores are
their mean over all orders, exactly, from the share of labels among each group of equal vectors.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.integer[Any]]
# Rows that are copied at once.
BLOCK = 4096


def groups_of(X: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) the position of the first row that is equal to each row.

    Args:
        X: (N, D).

    >>> groups_of(np.array([[1, 2], [1, 3], [1, 2]], np.float32)).tolist()
    [0, 1, 0]
    """
    first: dict[bytes, int] = {}
    found: list[int] = []
    for begin in range(0, len(X), BLOCK):
        # 0 and -0 are equal and have other bytes.
        for row in np.ascontiguousarray(X[begin : begin + BLOCK]) + np.float32(0):
            found.append(first.setdefault(hashlib.blake2b(row, digest_size=16).digest(), len(found)))
    return np.array(found, dtype=np.int64)


def hits(
    y: Labels, neighbors: Positions, groups: NDArray[np.int64], queries: Positions | None = None
) -> NDArray[np.float32] | NDArray[np.bool_]:
    """Whether neighbours have the label of their image, or how often over all orders of equal vectors.

    Args:
        y: (N,) labels.
        neighbors: (Q, k) positions, the image itself left out.
        groups: (N,) as `groups_of` gives it.
        queries: (Q,) positions of the images; unset: all.

    Returns:
        (Q, k). A sum over the k nearest is the mean over all orders: a group that is cut off after some of its
        members gives so many times the share of its members, without the image itself, that have the label.

    >>> hits(np.array([0, 0, 1]), np.array([[1], [0], [0]]), np.array([0, 1, 1])).tolist()
    [[0.5], [1.0], [0.0]]
    """
    asked = np.arange(len(y)) if queries is None else queries
    same: NDArray[np.bool_] = y[neighbors] == y[asked][:, None]
    sizes = np.bincount(groups, minlength=len(y))
    several = sizes[groups[neighbors]] > 1
    if not several.any():
        return same
    _, index = np.unique(y, return_inverse=True)
    K = int(index.max()) + 1
    # Only of groups of two or more: there may be as many groups as images.
    rank = np.cumsum(sizes > 1) - 1
    members = np.flatnonzero(sizes[groups] > 1)
    of_label = np.bincount(rank[groups[members]] * K + index[members]).astype(np.int64)
    of_label = np.pad(of_label, (0, (rank[-1] + 1) * K - len(of_label)))
    row, column = np.nonzero(several)
    group, image = groups[neighbors[row, column]], asked[row]
    itself = (group == groups[image]).astype(np.int64)
    found: NDArray[np.float32] = same.astype(np.float32)
    found[row, column] = (of_label[rank[group] * K + index[image]] - itself) / (sizes[group] - itself)
    return found
