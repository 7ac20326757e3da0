"""Ties between duplicate vectors, resolved so that neighbour scores don't depend on the order of the rows.

N images, D features, Q queries. Duplicates are neighbours at equal distance, in arbitrary order: scores are the exact
mean over all orders, computed from the share of each label within a group of duplicates.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.integer[Any]]
# Rows per block.
BLOCK = 4096


def groups_of(X: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) position of the first row that equals each row.

    Args:
        X: (N, D).

    >>> groups_of(np.array([[1, 2], [1, 3], [1, 2]], np.float32)).tolist()
    [0, 1, 0]
    """
    first: dict[bytes, int] = {}
    groups: list[int] = []
    for begin in range(0, len(X), BLOCK):
        # Adding 0 turns -0 into 0: equal values with different bytes.
        for row in np.ascontiguousarray(X[begin : begin + BLOCK]) + np.float32(0):
            groups.append(first.setdefault(hashlib.blake2b(row, digest_size=16).digest(), len(groups)))
    return np.array(groups, dtype=np.int64)


def hits(
    y: Labels, neighbors: Positions, groups: NDArray[np.int64], queries: Positions | None = None
) -> NDArray[np.float32] | NDArray[np.bool_]:
    """Whether each neighbour has the label of its image; among duplicates, the mean over all orders.

    Args:
        y: (N,) labels.
        neighbors: (Q, k) positions, without the image itself.
        groups: (N,) from `groups_of`.
        queries: (Q,) positions of the query images; unset: all.

    Returns:
        (Q, k). A neighbour with duplicates gets the share of its group that has the image's label, not counting the
        image itself, so that sums over the k nearest are exact means over all orders, even where k cuts a group.

    >>> hits(np.array([0, 0, 1]), np.array([[1], [0], [0]]), np.array([0, 1, 1])).tolist()
    [[0.5], [1.0], [0.0]]
    """
    positions = np.arange(len(y)) if queries is None else queries
    same: NDArray[np.bool_] = y[neighbors] == y[positions][:, None]
    sizes = np.bincount(groups, minlength=len(y))
    tied = sizes[groups[neighbors]] > 1
    if not tied.any():
        return same
    _, index = np.unique(y, return_inverse=True)
    K = int(index.max()) + 1
    # Number only groups with duplicates, since there may be as many groups as images.
    rank = np.cumsum(sizes > 1) - 1
    members = np.flatnonzero(sizes[groups] > 1)
    of_label = np.bincount(rank[groups[members]] * K + index[members]).astype(np.int64)
    of_label = np.pad(of_label, (0, (rank[-1] + 1) * K - len(of_label)))
    row, column = np.nonzero(tied)
    group, image = groups[neighbors[row, column]], positions[row]
    is_member = (group == groups[image]).astype(np.int64)
    shares: NDArray[np.float32] = same.astype(np.float32)
    shares[row, column] = (of_label[rank[group] * K + index[image]] - is_member) / (sizes[group] - is_member)
    return shares
