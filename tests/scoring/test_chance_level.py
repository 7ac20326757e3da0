import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysep.scoring import chance_level, formulas
from raysep.scoring.few_shot import NearestMeans
from tests.scoring.test_formulas import right

SHUFFLES = 100


@settings(max_examples=5)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(0, 999))
def test_chance_level_is_the_mean_over_shuffles(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    N = len(y)
    neighbors = np.stack([rng.permutation([j for j in range(N) if j != i]) for i in range(N)])
    clusters = rng.integers(0, 3, N)
    drawn = [rng.permutation(y) for _ in range(SHUFFLES)]

    def assert_mean(value: float, scores: list) -> None:
        assert np.mean(scores) == pytest.approx(value, abs=5 * np.std(scores) / np.sqrt(SHUFFLES) + 1e-9)

    assert_mean(chance_level.of_neighbors(y), [formulas.nn1(z, right(z, neighbors)) for z in drawn])
    k = min(3, N - 1)
    assert_mean(
        chance_level.of_neighbors(y, k / 500),
        [formulas.knn_purity(z, right(z, neighbors), k, 500) for z in drawn],
    )
    if max(sizes) > 1:
        assert_mean(chance_level.of_r_precision(y), [formulas.r_precision(z, right(z, neighbors)) for z in drawn])
    for name in ("nmi", "ami", "ari"):
        assert_mean(chance_level.of_clusters(name, y, clusters), [getattr(formulas, name)(z, clusters) for z in drawn])


def test_few_shot_with_uneven_classes() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(90, 4)).astype(np.float32), np.repeat([0, 1, 2], [10, 20, 60])
    scores = [NearestMeans(X, rng.permutation(y)).classify(2, 0).accuracies.mean() for _ in range(60)]
    assert np.mean(scores) == pytest.approx(chance_level.of_few_shot(y), abs=4 * np.std(scores) / np.sqrt(60))
    assert chance_level.of_few_shot(y) == pytest.approx(1 / 3)


def test_a_single_cluster_has_nmi_0() -> None:
    assert chance_level.of_clusters("nmi", np.array([0, 1, 0, 1]), np.zeros(4, int)) == 0
