"""The linear probe: held-out accuracy of a regularised linear classifier on one layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from raysep.separability.backends import Engine

OUTER_FOLDS, INNER_FOLDS = 5, 3
# C of scikit-learn, the inverse of the penalty, strongest penalty first.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def linear_probe(
    X: NDArray[np.float32],
    y: NDArray[np.integer[Any]],
    engine: Engine,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
) -> NDArray[np.bool_] | None:
    """What L2-regularised multinomial logistic regression is right about, on images that it wasn't fitted on.

    Five stratified folds; features are standardised by the training images of each. The penalty is the
    one of `STRENGTHS` with the best accuracy over three folds inside the training images (the strongest
    among equals), so that no held-out image has a part in it.

    Args:
        X: (N, D).
        y: (N,) labels.
        engine: fits the regressions.
        seed: of the folds.
        strengths: values of C to choose from, strongest penalty first; a single one is not chosen.

    Returns:
        (N,), whose mean is the probe's accuracy; None for fewer than two classes, or classes of fewer than four
        images, which leave the inner folds without one of their own. Folds are fewer where classes are small.
    """
    _, sizes = np.unique(y, return_counts=True)
    if len(sizes) < 2 or sizes.min() < 4:
        return None
    right = np.zeros(len(y), dtype=bool)
    outer = StratifiedKFold(min(OUTER_FOLDS, int(sizes.min())), shuffle=True, random_state=seed)
    for train, test in outer.split(X, y):
        best = 0
        if len(strengths) > 1:
            best = _best_strength(X, y, train, engine, seed, strengths)
        right[test] = _predictions(engine, X, y, train, test, strengths[: best + 1])[-1] == y[test]
    return right


def _best_strength(X: Any, y: Any, train: Any, engine: Engine, seed: int, strengths: Sequence[float]) -> int:
    """The position of the C that predicts best over folds of the training images."""
    smallest = int(np.unique(y[train], return_counts=True)[1].min())
    inner = StratifiedKFold(min(INNER_FOLDS, smallest), shuffle=True, random_state=seed)
    hits = np.zeros(len(strengths))
    for inner_train, inner_test in inner.split(X[train], y[train]):
        paths = _predictions(engine, X, y, train[inner_train], train[inner_test], strengths)
        hits += [(path == y[train[inner_test]]).sum() for path in paths]
    return int(hits.argmax())


def _predictions(engine: Engine, X: Any, y: Any, train: Any, test: Any, strengths: Sequence[float]) -> list[Any]:
    scaler = StandardScaler().fit(X[train])
    return engine.predict_path(scaler.transform(X[train]), y[train], scaler.transform(X[test]), strengths)
