"""Which images stand for all of them, where all would cost too much. N images, M of them chosen."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Positions = NDArray[np.int64]


def stratified(y: Labels, size: int, seed: int) -> Positions | None:
    """Each image with the same probability, and of each class its share to within one image.

    Means over these images are unbiased for means over all: every so-many-th image of a random order within
    classes (systematic sampling; Cochran 1977, Sampling Techniques, chapter 8).

    Args:
        y: (N,) labels.
        size: M.
        seed: of the order. The same labels give the same images, so that layers are compared on the same ones.

    Returns:
        (M,) positions, sorted; None where M >= N: all of them.
    """
    if size >= len(y):
        return None
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(y)), y))
    step = len(y) / size
    picked = np.floor((np.arange(size) + rng.random()) * step).astype(np.int64)
    return np.sort(order[picked.clip(max=len(y) - 1)])


def balanced(y: Labels, size: int, least: int, seed: int) -> Positions | None:
    """About its share of each class, and not less than so many images of any that has them.

    Args:
        y: (N,) labels.
        size: about so many images in all.
        least: of each class.
        seed: of the draw.

    Returns:
        Positions, sorted; None where size >= N: all of them.
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
    """(M,) positions drawn without a look at the labels, sorted; None where M >= N."""
    if size >= N:
        return None
    return np.sort(np.random.default_rng(seed).choice(N, size, replace=False))
