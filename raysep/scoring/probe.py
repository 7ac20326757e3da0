"""The linear probe: held-out accuracy of a regularised linear classifier on one layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.scoring.backend import Backend, Fold
from raysep.scoring.subsample import balanced

OUTER_FOLDS, INNER_FOLDS = 5, 3
# C of scikit-learn, the inverse of the penalty, strongest penalty first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_probe(
    placed: Any,
    y: NDArray[np.integer[Any]],
    backend: Backend,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
    sample: int | None = None,
) -> NDArray[np.bool_] | None:
    """What L2-regularised multinomial logistic regression is right about, on images that it wasn't fitted on.

    Five stratified folds; features are standardised by the training images of each. The penalty is the
    one of `STRENGTHS` with the best accuracy over three folds inside the training images (the strongest
    among equals), so that no held-out image has a part in it.

    Args:
        placed: N rows, as the backend placed them.
        y: (N,) labels.
        backend: fits the regressions.
        seed: of the folds.
        strengths: values of C to choose from, strongest penalty first; a single one is not chosen.
        sample: of more training images than this, the penalty is chosen on so many of them, per image the same.

    Returns:
        (N,), whose mean is the probe's accuracy; None for fewer than two classes, or classes of fewer than four
        images, which leave the inner folds without one of their own. Folds are fewer where classes are small.
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
            best = _best_strength(placed, y, train, backend, seed, strengths, sample)
        folds.append(Fold(train, test, [best]))
    right = np.zeros(len(y), dtype=bool)
    for fold, (predicted,) in zip(folds, backend.predict(placed, y, folds), strict=True):
        right[fold.test] = predicted == y[fold.test]
    return right


def _best_strength(
    placed: Any, y: Any, train: Any, backend: Backend, seed: int, strengths: Sequence[float], sample: int | None
) -> float:
    """The C that predicts best over folds of the training images."""
    from sklearn.model_selection import StratifiedKFold

    chosen = None if sample is None else balanced(y[train], sample, INNER_FOLDS + 1, seed)
    of = train if chosen is None else train[chosen]
    # scikit-learn's penalty stands against a sum over images: fewer of them weigh less against the same C.
    scaled = [C * len(train) / len(of) for C in strengths]
    smallest = int(np.unique(y[of], return_counts=True)[1].min())
    inner = StratifiedKFold(min(INNER_FOLDS, smallest), shuffle=True, random_state=seed)
    folds = [Fold(of[inner_train], of[inner_test], scaled) for inner_train, inner_test in inner.split(of, y[of])]
    hits = sum(
        (predicted == y[fold.test]).sum(axis=1)
        for fold, predicted in zip(folds, backend.predict(placed, y, folds), strict=True)
    )
    return strengths[int(np.argmax(hits))]
