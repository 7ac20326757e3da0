"""Subsampling of large data sets: stratified, class-balanced, uniform. M of N images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.int64]


def stratified(y: Labels, size: int, seed: int) -> Positions | None:
    """Sample images with equal probability, and each class in proportion to its size, to within one image.

    Systematic sampling in random order within classes (Cochran 1977, Sampling Techniques, chapter 8): sample means are
    unbiased for the means over all images.

    Args:
        y: (N,) labels.
        size: M.
        seed: seed of the random order. Equal labels give equal samples, so that layers are compared on the same images.

    Returns:
        (M,) positions, sorted; None, meaning all images, where M >= N.
    """
    if size >= len(y):
        return None
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(y)), y))
    step = len(y) / size
    picked = np.floor((np.arange(size) + rng.random()) * step).astype(np.int64)
    return np.sort(order[picked.clip(max=len(y) - 1)])


def balanced(y: Labels, size: int, least: int, seed: int) -> Positions | None:
    """Sample each class in proportion to its size, with a minimum number of images per class.

    Args:
        y: (N,) labels.
        size: approximate sample size.
        least: minimum per class; smaller classes are taken completely.
        seed: seed of the sample.

    Returns:
        Positions, sorted; None for all images, where size >= N.
    """
    if size >= len(y):
        return None
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        count = min(len(members), max(least, round(size * len(members) / len(y))))
        chosen.append(rng.choice(members, count, replace=False))
    return np.sort(np.concatenate(chosen))


def uniform(N: int, size: int, seed: int) -> Positions | None:
    """Sample (M,) sorted positions uniformly, regardless of labels; None for all images, where M >= N."""
    if size >= N:
        return None
    return np.sort(np.random.default_rng(seed).choice(N, size, replace=False))
