"""k-means on many subsets of the same images at once: every iteration is a few matrix products for all of them.

N images, D features, P subsets, K clusters, C candidates. Each subset is clustered from nothing, by greedy
k-means++ (Arthur and Vassilvitskii 2007, with several candidates a step as scikit-learn has them) and
Lloyd's iterations, so that subsets without common images have independent clusters.
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
    """The clusters of the best of several starts, for each subset.

    Args:
        Z: (N, D), centred, so that the products of distances don't cancel.
        members: (N, P) the images of each subset, K or more.
        K: clusters.
        starts: for each subset.
        seed: of the starts.

    Returns:
        (N, P) clusters, `OUTSIDE` for images that are not in the subset.
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
    """(K, P, D) first centres: each next one is the best of C images drawn by their squared distance."""
    P, C = members.shape[1], 2 + int(math.log(K))
    squares = (Z**2).sum(axis=1)
    chosen = np.empty((K, P), dtype=np.int64)
    chosen[0] = (rng.random(members.shape) * members).argmax(axis=0)
    distance = np.where(members, _to_images(Z, squares, chosen[0]), 0)
    for step in range(1, K):
        cumulative = distance.cumsum(axis=0, dtype=np.float64)
        least = np.full(P, np.inf)
        kept = distance
        for _ in range(C):
            candidate = (cumulative < rng.random(P) * cumulative[-1]).sum(axis=0).clip(max=len(Z) - 1)
            closer = np.minimum(distance, np.where(members, _to_images(Z, squares, candidate), 0))
            potential = closer.sum(axis=0, dtype=np.float64)
            better = potential < least
            chosen[step, better], least[better] = candidate[better], potential[better]
            kept = np.where(better, closer, kept)
        distance = kept
    return Z[chosen]


def _to_images(Z: Matrix, squares: Matrix, images: NDArray[np.int64]) -> Matrix:
    """(N, P) squared distances of all images to one image for each subset."""
    distances: Matrix = squares[:, None] + squares[images] - 2 * (Z @ Z[images].T)
    return distances.clip(min=0)


def _lloyd(Z: Matrix, members: Mask, centres: Matrix) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Clusters and inertia (less what all clusterings of a subset share) after Lloyd's iterations."""
    assigned = np.full(members.shape, OUTSIDE, dtype=np.int16)
    inertia = np.empty(members.shape[1])
    active, inside = np.arange(members.shape[1]), members
    # A column of ones takes the centres' own squares into the product.
    with_one = np.concatenate([Z, np.ones((len(Z), 1), Z.dtype)], axis=1)
    for iteration in range(ITERATIONS):
        moved, nearest = _assign(with_one, inside, centres[:, active])
        changed = (moved != assigned[:, active]).any(axis=0)
        assigned[:, active] = moved
        settled = ~changed if iteration + 1 < ITERATIONS else np.ones_like(changed)
        inertia[active[settled]] = np.where(inside[:, settled], nearest[:, settled], 0).sum(axis=0, dtype=np.float64)
        active, inside = active[~settled], inside[:, ~settled]
        if not len(active):
            break
        _recentre(Z, moved[:, ~settled], centres, active)
    return assigned, inertia


def _assign(with_one: Matrix, inside: Mask, centres: Matrix) -> tuple[NDArray[np.int16], Matrix]:
    """The nearest centre, and its squared distance less the image's own square, which is the same for each."""
    nearest = np.full(inside.shape, np.inf, dtype=np.float32)
    distance = np.empty_like(nearest)
    moved, closer = np.zeros(inside.shape, dtype=np.int16), np.empty(inside.shape, dtype=np.int16)
    for cluster, centre in enumerate(centres):
        weights = np.concatenate([-2 * centre, (centre**2).sum(axis=1, keepdims=True)], axis=1)
        np.matmul(with_one, weights.T, out=distance)
        # The last cluster that was closer than all before it. By arithmetic: masked copies take 20 times as long.
        np.multiply(distance < nearest, np.int16(cluster), out=closer)
        np.maximum(moved, closer, out=moved)
        np.minimum(nearest, distance, out=nearest)
    moved -= np.int16(OUTSIDE)
    moved *= inside
    moved += np.int16(OUTSIDE)
    return moved, nearest


def _recentre(Z: Matrix, assigned: NDArray[np.int16], centres: Matrix, active: NDArray[Any]) -> None:
    """Move the centres in place. One that lost all of its images stays where it was."""
    for cluster in range(len(centres)):
        inside = (assigned == cluster).astype(np.float32)
        sizes = inside.sum(axis=0)
        filled = sizes > 0
        centres[cluster, active[filled]] = (inside[:, filled].T @ Z) / sizes[filled, None]
