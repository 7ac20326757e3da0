"""The linear probe: held-out accuracy of a regularised linear classifier on one layer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from raysep.separability.backends import Engine

OUTER_FOLDS, INNER_FOLDS = 5, 3
# C of scikit-learn, the inverse of the penalty, strongest penalty first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_probe(X: NDArray[np.float32], y: NDArray[np.integer[Any]], engine: Engine, seed: int) -> float | None:
    """Accuracy of L2-regularised multinomial logistic regression on images that it wasn't fitted on.

    Five stratified folds; features are standardised by the training images of each. The penalty is the
    one of `STRENGTHS` with the best accuracy over three folds inside the training images (the strongest
    among equals), so that no held-out image has a part in it.

    Args:
        X: (N, D).
        y: (N,) labels.
        engine: fits the regressions.
        seed: of the folds.

    Returns:
        0 to 1, the mean over all images; None for fewer than two classes, or classes of fewer than four
        images, which leave the inner folds without one of their own. Folds are fewer where classes are small.
    """
    _, sizes = np.unique(y, return_counts=True)
    if len(sizes) < 2 or sizes.min() < 4:
        return None
    right = 0
    outer = StratifiedKFold(min(OUTER_FOLDS, int(sizes.min())), shuffle=True, random_state=seed)
    for train, test in outer.split(X, y):
        smallest = int(np.unique(y[train], return_counts=True)[1].min())
        inner = StratifiedKFold(min(INNER_FOLDS, smallest), shuffle=True, random_state=seed)
        hits = np.zeros(len(STRENGTHS))
        for inner_train, inner_test in inner.split(X[train], y[train]):
            paths = _predictions(engine, X, y, train[inner_train], train[inner_test], len(STRENGTHS))
            hits += [(path == y[train[inner_test]]).sum() for path in paths]
        best = int(hits.argmax())
        right += int((_predictions(engine, X, y, train, test, best + 1)[-1] == y[test]).sum())
    return right / len(y)


def _predictions(engine: Engine, X: Any, y: Any, train: Any, test: Any, count: int) -> list[Any]:
    scaler = StandardScaler().fit(X[train])
    return engine.predict_path(scaler.transform(X[train]), y[train], scaler.transform(X[test]), STRENGTHS[:count])
