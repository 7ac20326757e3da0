"""Weighted nearest-neighbour classification by cosine similarity, leave-one-out, as in the evaluations of DINO.

N images, D features, Q classified images, k neighbours, C classes, S splits into halves. Each neighbour votes for its
class with the weight exp(s / T), where s is its cosine similarity (Wu, Xiong, Yu, Lin 2018, arXiv:1805.01978, section
3.4; Caron et al. 2021, arXiv:2104.14294: k = 20, T = 0.07).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.split_half import HalfValues

Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.integer[Any]]

K_NEIGHBORS, TEMPERATURE = 20, 0.07
# Neighbours to search: halves need about twice as many, to find 20 in the same half.
SEARCHED = 64
# Classes tie if their votes differ by at most this share.
SAME_VOTES = 1e-9
# Rows per block.
BLOCK = 2048


def unit_rows(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """L2-normalise the rows of X (N, D); rows of zeros stay zeros."""
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(X, norms, out=np.zeros_like(X), where=norms > 0)
    return unit


def vote_weights(unit: NDArray[np.float32], neighbors: Positions, queries: Positions) -> NDArray[np.float64]:
    """(Q, k) weight of each neighbour's vote, relative to that of a neighbour in the same direction.

    Args:
        unit: (N, D) L2-normalised rows.
        neighbors: (Q, k) positions.
        queries: (Q,) positions of the classified images.
    """
    weights = np.empty(neighbors.shape)
    for first in range(0, len(queries), BLOCK):
        block = slice(first, first + BLOCK)
        similarity = np.einsum("qd,qkd->qk", unit[queries[block]], unit[neighbors[block]], dtype=np.float64)
        weights[block] = np.exp((similarity - 1) / TEMPERATURE)
    return weights


def right_votes(y: Labels, neighbors: Positions, weights: NDArray[np.float64], queries: Positions) -> NDArray[Any]:
    """(Q,) whether the neighbours elect the class of each image: 1, 0, or 1/T where it is one of T equal classes.

    Args:
        y: (N,) classes, 0 to C - 1.
        neighbors: (Q, k) positions, without the image itself.
        weights: (Q, k) weights of the votes; 0 for no vote.
        queries: (Q,) positions of the classified images.

    >>> right_votes(np.array([0, 0, 1]), np.array([[1, 2]]), np.array([[0.6, 0.4]]), np.array([0]))
    array([1.])
    """
    C, rows = int(y.max()) + 1, np.arange(len(queries))
    votes = np.bincount(
        (rows[:, None] * C + y[neighbors]).ravel(), weights=weights.ravel(), minlength=len(queries) * C
    ).reshape(-1, C)
    winners = votes >= votes.max(axis=1, keepdims=True) * (1 - SAME_VOTES)
    right: NDArray[Any] = winners[rows, y[queries]] / winners.sum(axis=1)
    return right


def accuracy_on_halves(
    y: Labels, neighbors: Positions, weights: NDArray[np.float64], queries: Positions, in_a: NDArray[np.bool_]
) -> HalfValues:
    """Accuracy within each half: the 20 nearest of the neighbours in the same half vote. Arguments as `right_votes`.

    Args:
        in_a: (N, S) masks of half a.
    """
    values = np.empty((in_a.shape[1], 2))
    for split, members in enumerate(in_a.T):
        is_a = members[queries]
        same_half = members[neighbors] == is_a[:, None]
        voting = same_half & (same_half.cumsum(axis=1) <= K_NEIGHBORS)
        right = right_votes(y, neighbors, weights * voting, queries)
        values[split] = right[is_a].mean(), right[~is_a].mean()
    return values
