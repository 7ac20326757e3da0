from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.probe import STRENGTHS
from raysep.scoring.probe import linear_probe as probe
from tests.scoring.test_formulas import blobs


def linear_probe(*arguments: Any, **options: Any) -> float | None:
    right = probe(*arguments, **options)
    return None if right is None else float(right.mean())


@pytest.mark.parametrize(("spread", "D"), [(1.0, 6), (2.0, 20), (3.0, 40)])
def test_the_probe_is_nested_cross_validation(spread: float, D: int) -> None:
    X, y = blobs([80, 60, 70], spread=spread, D=D)
    # Among equal accuracies both GridSearchCV and the probe select the first: the strongest penalty.
    grid = {"logisticregression__C": list(STRENGTHS)}
    model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-6, max_iter=2000))
    nested = GridSearchCV(model, grid, cv=StratifiedKFold(3, shuffle=True, random_state=1))
    folds = StratifiedKFold(5, shuffle=True, random_state=1)
    expected = cross_val_score(nested, X, y, cv=folds).mean()
    assert linear_probe(X, y, SklearnBackend(), seed=1) == pytest.approx(expected, abs=0.01)


def test_scale_and_shift_of_features_do_not_matter() -> None:
    X, y = blobs([40, 40, 40], spread=1.5)
    plain = linear_probe(X, y, SklearnBackend(), 0)
    moved = (X * np.linspace(0.5, 20, X.shape[1]) + 3).astype(np.float32)
    assert linear_probe(moved, y, SklearnBackend(), 0) == pytest.approx(plain, abs=0.02)


def test_separable_classes_and_noise() -> None:
    X, y = blobs([30, 30], spread=0.01)
    assert linear_probe(X, y, SklearnBackend(), 0) == 1.0
    noise = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    assert linear_probe(noise, np.arange(400) % 2, SklearnBackend(), 0) == pytest.approx(0.5, abs=0.08)


def test_constant_features_and_small_classes() -> None:
    assert linear_probe(np.ones((40, 3), np.float32), np.arange(40) % 4, SklearnBackend(), 0) == pytest.approx(0.25)
    X, y = blobs([4, 9], spread=0.01)
    assert linear_probe(X, y, SklearnBackend(), 0) == 1.0
    assert linear_probe(*blobs([3, 9]), SklearnBackend(), 0) is None
    assert linear_probe(*blobs([9]), SklearnBackend(), 0) is None
