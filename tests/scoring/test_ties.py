import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysep.config import ScoreConfig
from raysep.config.names import Metric
from raysep.config.registry import METRICS
from raysep.scoring import chance_level, ties
from raysep.scoring.backend import Backend
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.backends.torch import TorchBackend
from raysep.scoring.cache import LayerScores

NEIGHBOUR_METRICS: tuple[Metric, ...] = ("nn1", "knn_purity", "r_precision")


def scores(X: np.ndarray, y: np.ndarray, backend: Backend | None = None) -> dict[str, float | None]:
    layer = LayerScores(X.astype(np.float32), y, backend or TorchBackend(), ScoreConfig(resamples=0))
    return {metric: METRICS[metric].compute(layer).value for metric in NEIGHBOUR_METRICS}


def over_all_orders(X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Mean of each metric over all row orders, where ties are sorted by row."""
    sizes = np.bincount(y)
    found: dict[str, list[float]] = {metric: [] for metric in NEIGHBOUR_METRICS}
    for order in itertools.permutations(range(len(y))):
        per_image: dict[str, list[float]] = {metric: [] for metric in NEIGHBOUR_METRICS}
        for image in range(len(y)):
            others = [other for other in order if other != image]
            near = sorted(others, key=lambda other: float(((X[image] - X[other]) ** 2).sum()))
            same = [float(y[other] == y[image]) for other in near]
            per_image["nn1"].append(same[0])
            per_image["knn_purity"].append(float(np.mean(same[: sizes.min() - 1])))
            if sizes[y[image]] > 1:
                per_image["r_precision"].append(float(np.mean(same[: sizes[y[image]] - 1])))
        for metric, values in per_image.items():
            found[metric].append(float(np.mean(values)))
    return {metric: float(np.mean(values)) for metric, values in found.items()}


@pytest.mark.parametrize("backend", [SklearnBackend(), TorchBackend()], ids=["sklearn", "torch"])
@settings(max_examples=20)
@given(st.lists(st.integers(0, 2), min_size=5, max_size=5), st.integers(0, 9))
def test_equal_vectors_give_the_mean_over_all_orders(backend: Backend, rows: list[int], seed: int) -> None:
    # Three vectors at different distances: only duplicates tie.
    X, y = np.array([[0.0], [1.0], [3.5]])[rows], np.random.default_rng(seed).permutation([0, 0, 0, 1, 1])
    expected = over_all_orders(X, y)
    for metric, value in scores(X, y, backend).items():
        assert value == pytest.approx(expected[metric], abs=1e-6), metric


def test_constant_layers_and_duplicates_across_classes() -> None:
    y = np.repeat([0, 1, 2], [5, 9, 6])
    found = scores(np.full((20, 4), 0.7), y)
    assert found["nn1"] == pytest.approx(chance_level.of_neighbors(y))
    assert found["r_precision"] == pytest.approx(chance_level.of_r_precision(y))
    # Zeros of either sign are equal.
    signs = np.random.default_rng(0).choice([-0.0, 0.0], (20, 4))
    assert scores(signs, y)["nn1"] == pytest.approx(chance_level.of_neighbors(y))
    # Each image twice, in two classes: the nearest neighbour has always the other class.
    X = np.random.default_rng(0).normal(size=(10, 3))
    assert scores(np.concatenate([X, X]), np.repeat([0, 1], 10))["nn1"] == 0


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(12, 5))[rng.integers(0, 12, 90)], np.repeat([0, 1, 2], 30)
    order = rng.permutation(90)
    for metric, value in scores(X, y).items():
        assert scores(X[order], y[order])[metric] == pytest.approx(value, abs=1e-6), metric


def test_intervals_of_layers_with_equal_vectors() -> None:
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(20, 5)).astype(np.float32)[rng.integers(0, 20, 120)], np.repeat([0, 1], 60)
    layer = LayerScores(X, y, TorchBackend(), ScoreConfig(resamples=40))
    for metric in NEIGHBOUR_METRICS:
        found = METRICS[metric].compute(layer)
        assert found.value is not None
        assert found.interval is not None
        assert 0 < found.interval[1] - found.interval[0] < 0.5


def test_groups_and_shares_of_some_queries() -> None:
    y = np.array([0, 1, 0, 1, 0])
    groups = ties.groups_of(np.array([[1, 1], [1, 1], [1, 1], [2, 2], [3, 3]], np.float32))
    assert groups.tolist() == [0, 0, 0, 3, 4]
    found = ties.hits(y, np.array([[1, 2], [3, 0]]), groups, np.array([0, 4]))
    # The first image has two duplicates, one with its label; the fifth has three tied neighbours, two with its label.
    np.testing.assert_allclose(found, [[0.5, 0.5], [0, 2 / 3]])
    assert ties.hits(y, np.array([[3], [3], [3], [4], [3]]), groups).dtype == bool
