"""Invariances of scores, and scores of degenerate input."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysep.config import ScoreConfig
from raysep.config.registry import METRICS
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.scoring import score_layer
from tests.scoring.test_formulas import blobs

SETTINGS = ScoreConfig(seed=1, resamples=0, max_classes=None)
# k-means draws images by position, so that another row order gives other starts. This spread is small enough for all
# starts to find the same clusters.
SPREAD = 0.45


def values(X: np.ndarray, y: np.ndarray, metrics: Any = METRICS) -> dict[str, float | None]:
    found = score_layer(
        np.ascontiguousarray(X, np.float32), y, [("default", m) for m in metrics], SklearnBackend(), SETTINGS
    )
    return {score.metric: score.measured.value for score in found}


def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return blobs([16, 14, 18], spread=SPREAD, D=6, seed=seed)


def assert_same(one: dict, two: dict, **within: float) -> None:
    for metric, value in one.items():
        assert two[metric] == pytest.approx(value, abs=within.get(metric, 1e-6)), metric


# Tolerances of metrics whose draws or folds depend on the row order.
DRAW_NOISE = {f"few_shot_{shots}": 0.08 for shots in (1, 2, 5, 10, 20)} | {"linear_probe": 0.1}


@settings(max_examples=4)
@given(st.integers(0, 10_000))
def test_row_order(seed: int) -> None:
    X, y = data(seed)
    order = np.random.default_rng(seed).permutation(len(y))
    assert_same(values(X, y), values(X[order], y[order]), **DRAW_NOISE)


@pytest.mark.slow
@settings(max_examples=4)
@given(st.integers(0, 10_000))
def test_names_of_classes(seed: int) -> None:
    X, y = data(seed)
    # The sort order is unchanged, and so are draws and folds.
    assert_same(values(X, y), values(X, y * 17 - 40))
    assert_same(values(X, y), values(X, np.array([5, 0, 9])[y]), **DRAW_NOISE)


@settings(max_examples=4)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_rotation_shift_and_scale(seed: int, scale: float, shift: float) -> None:
    X, y = data(seed)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    # The probe standardises features, which a rotation mixes (4 of 48 images at most, in 180 examples); the other
    # metrics depend on distances alone.
    rounding = dict.fromkeys(METRICS, 2e-2)
    # A shift changes the angles between vectors.
    metrics = [metric for metric in METRICS if metric != "knn_accuracy"]
    before, turned = values(X, y, metrics), values(scale * (X @ turn) + shift, y, metrics)
    assert_same(before, turned, **{**rounding, "linear_probe": 6 / 48})
    assert_same(before, values(scale * X + shift, y, metrics), **rounding)
    assert_same(values(X, y, ["knn_accuracy"]), values(scale * (X @ turn), y, ["knn_accuracy"]))


@pytest.mark.parametrize("metric", METRICS)
def test_shuffled_labels_are_chance(metric: str) -> None:
    X, y = blobs([100] * 4, spread=0.5)
    y = np.random.default_rng(0).permutation(y)
    (value,) = values(X, y, [metric]).values()
    chance = 0.0 if metric in {"nmi", "ami", "ari"} else 0.25
    assert value == pytest.approx(chance, abs=0.08)


@pytest.mark.parametrize("metric", METRICS)
def test_more_separation_never_scores_lower_beyond_noise(metric: str) -> None:
    series = []
    for spread in (4.0, 2.0, 1.0, 0.5, 0.1):
        runs = [values(*blobs([40] * 3, spread=spread, D=6, seed=seed), [metric])[metric] for seed in range(5)]
        series.append(np.mean(runs))
    assert all(later >= earlier - 0.02 for earlier, later in pairwise(series)), series
    assert series[-1] > 0.95
    assert series[0] < series[-1] - 0.2


def test_degenerate_input() -> None:
    one_class = values(*blobs([30]))
    assert set(one_class.values()) == {None}
    # Singleton classes: perfect clusters, but no neighbour of the same class.
    single = values(np.random.default_rng(0).normal(size=(6, 3)), np.arange(6))
    assert single["nmi"] == 1.0
    assert single["nn1"] == 0.0
    assert single["r_precision"] is single["linear_probe"] is single["few_shot_1"] is single["knn_purity"] is None
    constant = values(np.ones((40, 3)), np.arange(40) % 2)
    assert constant["nmi"] == constant["ami"] == constant["ari"] == 0
    # Two images, two classes; and one image.
    assert values(np.eye(2), np.array([0, 1]))["nn1"] == 0.0
    assert set(values(np.eye(1), np.array([0])).values()) == {None}
