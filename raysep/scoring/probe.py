"""The linear probe: cross-validated accuracy of a regularised linear classifier on one layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.backend import Backend, Fold
from raysep.scoring.subsample import balanced

OUTER_FOLDS, INNER_FOLDS = 5, 3
# Values of scikit-learn's C, the inverse of the penalty, strongest penalty first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_probe(
    on_device: Any,
    y: NDArray[np.integer[Any]],
    backend: Backend,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
    sample: int | None = None,
) -> NDArray[np.bool_] | None:
    """Whether L2-regularised multinomial logistic regression classifies each image correctly when held out.

    Nested cross-validation: five stratified outer folds, with features standardised by the training images. The penalty
    is the value of `strengths` with the best accuracy over three inner folds of the training images (the strongest of
    several), so that no held-out image affects it.

    Args:
        on_device: N rows, from `Backend.to_device`.
        y: (N,) labels.
        backend: fits the regressions.
        seed: seed of the folds.
        strengths: values of C to choose from, strongest penalty first; a single value skips the inner folds.
        sample: largest number of training images for the choice of the penalty; the penalty per image stays the same.

    Returns:
        (N,), with the accuracy as mean; None for fewer than two classes, or a class of fewer than four images, too few
        for nested folds. Small classes reduce the number of folds.
    """
    from sklearn.model_selection import StratifiedKFold

    _, sizes = np.unique(y, return_counts=True)
    if len(sizes) < 2 or sizes.min() < 4:
        return None
    folds = []
    outer = StratifiedKFold(min(OUTER_FOLDS, int(sizes.min())), shuffle=True, random_state=seed)
    for train, test in outer.split(y, y):
        best = strengths[0]
        if len(strengths) > 1:
            best = _best_strength(on_device, y, train, backend, seed, strengths, sample)
        folds.append(Fold(train, test, [best]))
    correct = np.zeros(len(y), dtype=bool)
    for fold, (predicted,) in zip(folds, backend.predict(on_device, y, folds), strict=True):
        correct[fold.test] = predicted == y[fold.test]
    return correct


def _best_strength(
    on_device: Any, y: Any, train: Any, backend: Backend, seed: int, strengths: Sequence[float], sample: int | None
) -> float:
    """The C with the best cross-validated accuracy on the training images."""
    from sklearn.model_selection import StratifiedKFold

    chosen = None if sample is None else balanced(y[train], sample, INNER_FOLDS + 1, seed)
    images = train if chosen is None else train[chosen]
    # The loss is a sum over images: on fewer images, C must be larger for the same penalty per image.
    scaled = [C * len(train) / len(images) for C in strengths]
    smallest = int(np.unique(y[images], return_counts=True)[1].min())
    inner = StratifiedKFold(min(INNER_FOLDS, smallest), shuffle=True, random_state=seed)
    folds = [Fold(images[fit], images[test], scaled) for fit, test in inner.split(images, y[images])]
    hits = sum(
        (predicted == y[fold.test]).sum(axis=1)
        for fold, predicted in zip(folds, backend.predict(on_device, y, folds), strict=True)
    )
    return strengths[int(np.argmax(hits))]
