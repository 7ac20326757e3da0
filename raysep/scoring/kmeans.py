"""Batched k-means on many subsets of the same images: an iteration is a few matrix products for all subsets.

N images, D features, P subsets, K clusters, C candidates. Each subset is clustered independently, by greedy
k-means++ (Arthur and Vassilvitskii 2007, with several candidates per step as in scikit-learn) and Lloyd's
iterations. Disjoint subsets thus have independent clusters.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Mask = NDArray[np.bool_]

ITERATIONS = 25
OUTSIDE = -1


def kmeans_on_subsets(Z: Matrix, members: Mask, K: int, starts: int, seed: int) -> NDArray[np.int16]:
    """Cluster each subset, and return the clusters of its start with the lowest inertia.

    Args:
        Z: (N, D), mean-centred, to avoid cancellation in distances.
        members: (N, P) whether an image is in each subset; at least K images per subset.
        K: number of clusters.
        starts: number of starts per subset.
        seed: seed of the starts.

    Returns:
        (N, P) clusters, `OUTSIDE` for images outside the subset.
    """
    rng = np.random.default_rng(seed)
    best = np.full(members.shape, OUTSIDE, dtype=np.int16)
    least = np.full(members.shape[1], np.finfo(np.float64).max)
    for _ in range(starts):
        assigned, inertia = _lloyd(Z, members, _seeds(Z, members, K, rng))
        better = inertia < least
        best[:, better], least[better] = assigned[:, better], inertia[better]
    return best


def _seeds(Z: Matrix, members: Mask, K: int, rng: np.random.Generator) -> Matrix:
    """(K, P, D) initial centres by greedy k-means++: each is the best of C images drawn by squared distance."""
    P, C = members.shape[1], 2 + int(math.log(K))
    squares = (Z**2).sum(axis=1)
    chosen = np.empty((K, P), dtype=np.int64)
    chosen[0] = (rng.random(members.shape) * members).argmax(axis=0)
    distance = np.where(members, _to_images(Z, squares, chosen[0]), 0)
    for step in range(1, K):
        cumulative = distance.cumsum(axis=0, dtype=np.float64)
        least = np.full(P, np.inf)
        closest = distance
        for _ in range(C):
            candidate = (cumulative < rng.random(P) * cumulative[-1]).sum(axis=0).clip(max=len(Z) - 1)
            closer = np.minimum(distance, np.where(members, _to_images(Z, squares, candidate), 0))
            potential = closer.sum(axis=0, dtype=np.float64)
            better = potential < least
            chosen[step, better], least[better] = candidate[better], potential[better]
            closest = np.where(better, closer, closest)
        distance = closest
    return Z[chosen]


def _to_images(Z: Matrix, squares: Matrix, images: NDArray[np.int64]) -> Matrix:
    """(N, P) squared distances of all images to one image per subset."""
    distances: Matrix = squares[:, None] + squares[images] - 2 * (Z @ Z[images].T)
    return distances.clip(min=0)


def _lloyd(Z: Matrix, members: Mask, centres: Matrix) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Run Lloyd's iterations; return the clusters, and each subset's inertia up to a constant."""
    assigned = np.full(members.shape, OUTSIDE, dtype=np.int16)
    inertia = np.empty(members.shape[1])
    active, inside = np.arange(members.shape[1]), members
    # A column of ones adds the squared norms of the centres within the matrix product.
    with_one = np.concatenate([Z, np.ones((len(Z), 1), Z.dtype)], axis=1)
    for iteration in range(ITERATIONS):
        updated, nearest = _assign(with_one, inside, centres[:, active])
        changed = (updated != assigned[:, active]).any(axis=0)
        assigned[:, active] = updated
        settled = ~changed if iteration + 1 < ITERATIONS else np.ones_like(changed)
        inertia[active[settled]] = np.where(inside[:, settled], nearest[:, settled], 0).sum(axis=0, dtype=np.float64)
        active, inside = active[~settled], inside[:, ~settled]
        if not len(active):
            break
        _recentre(Z, updated[:, ~settled], centres, active)
    return assigned, inertia


def _assign(with_one: Matrix, inside: Mask, centres: Matrix) -> tuple[NDArray[np.int16], Matrix]:
    """The nearest centre of each image, and its squared distance minus the squared norm of the image.

    Args:
        with_one: (N, D + 1) images, with a column of ones appended.
        inside: mask of the images to assign; others get `OUTSIDE`.
        centres: (K, P, D) centres of P runs of k-means.
    """
    nearest = np.full(inside.shape, np.inf, dtype=np.float32)
    distance = np.empty_like(nearest)
    assigned, closer = np.zeros(inside.shape, dtype=np.int16), np.empty(inside.shape, dtype=np.int16)
    for cluster, centre in enumerate(centres):
        weights = np.concatenate([-2 * centre, (centre**2).sum(axis=1, keepdims=True)], axis=1)
        np.matmul(with_one, weights.T, out=distance)
        # Running argmin by arithmetic: masked copies take 20 times as long.
        np.multiply(distance < nearest, np.int16(cluster), out=closer)
        np.maximum(assigned, closer, out=assigned)
        np.minimum(nearest, distance, out=nearest)
    assigned -= np.int16(OUTSIDE)
    assigned *= inside
    assigned += np.int16(OUTSIDE)
    return assigned, nearest


def _recentre(Z: Matrix, assigned: NDArray[np.int16], centres: Matrix, active: NDArray[Any]) -> None:
    """Update the centres in place; the centre of an empty cluster stays unchanged."""
    for cluster in range(len(centres)):
        inside = (assigned == cluster).astype(np.float32)
        sizes = inside.sum(axis=0)
        filled = sizes > 0
        centres[cluster, active[filled]] = (inside[:, filled].T @ Z) / sizes[filled, None]
