import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysep.config import ScoreConfig
from raysep.config.registry import METRICS
from raysep.scoring import subsample
from raysep.scoring.backends.torch import TorchBackend
from raysep.scoring.cache import LayerScores
from raysep.scoring.scoring import score_layer
from tests.scoring.test_formulas import blobs


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 60), st.integers(0, 999))
def test_stratified_samples_are_proportional(sizes: list[int], M: int, seed: int) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    chosen = subsample.stratified(y, M, seed)
    if len(y) <= M:
        assert chosen is None
        return
    assert len(set(chosen)) == M
    assert (np.diff(chosen) > 0).all()
    for label, size in enumerate(sizes):
        assert abs((y[chosen] == label).sum() - M * size / len(y)) <= 1


def test_every_image_has_the_same_probability() -> None:
    y = np.repeat([0, 1, 2], [3, 10, 7])
    times = sum(np.bincount(subsample.stratified(y, 6, seed), minlength=20) for seed in range(3000))
    assert times / 3000 == pytest.approx(6 / 20, abs=0.04)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 60), st.integers(1, 6))
def test_balanced_samples_contain_every_class(sizes: list[int], M: int, least: int) -> None:
    y = np.repeat(np.arange(len(sizes)), sizes)
    chosen = subsample.balanced(y, M, least, 0)
    if chosen is None:
        assert len(y) <= M
        return
    for label, size in enumerate(sizes):
        count = (y[chosen] == label).sum()
        assert min(size, least) <= count <= max(least, M * size / len(y) + 1)


def test_uniform_samples() -> None:
    assert subsample.uniform(5, 5, 0) is None
    chosen = subsample.uniform(50, 20, 0)
    assert len(set(chosen)) == 20
    np.testing.assert_array_equal(chosen, subsample.uniform(50, 20, 0))


@pytest.mark.slow
def test_scores_of_a_sample_are_unbiased_with_wider_intervals() -> None:
    X, y = blobs([600] * 4, spread=1.2, D=8)
    wanted = [("default", metric) for metric in METRICS]
    whole = {s.metric: s.measured for s in score_layer(X, y, wanted, TorchBackend(), ScoreConfig(resamples=60))}
    drawn = [
        {
            s.metric: s.measured
            for s in score_layer(
                X,
                y,
                wanted,
                TorchBackend(),
                ScoreConfig.model_construct(seed=seed, resamples=60, max_classes=None, sample=300),
            )
        }
        for seed in range(12)
    ]
    for metric in METRICS:
        values = np.array([scores[metric].value for scores in drawn])
        error = values.std(ddof=1) / np.sqrt(len(values))
        # k-means centres from an eighth of the images are slightly worse. The other metrics are unbiased; few-shot
        # draws differ.
        least = 0.03 if metric in {"nmi", "ami", "ari"} else 0.02 if metric.startswith("few_shot") else 0.002
        assert values.mean() == pytest.approx(whole[metric].value, abs=max(4 * error, least)), metric
    for metric in ("nn1", "knn_purity", "r_precision"):
        # 300 of 2,400 images give larger standard errors.
        assert np.mean([scores[metric].se for scores in drawn]) > 1.3 * whole[metric].se, metric
        assert all(scores[metric].halves.shape == whole[metric].halves.shape for scores in drawn)


def test_halved_samples_contain_every_class_and_many_neighbours_reduce_the_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = blobs([2000, 2000, 5], spread=1.0, D=2)
    monkeypatch.setattr("raysep.scoring.cache.HALVED_IMAGES", 300)
    layer = LayerScores(X, y, TorchBackend(), ScoreConfig(resamples=20, sample=1500))
    assert np.bincount(y[layer.halved]).tolist() == [150, 150, 5]
    assert len(layer.queries) == 1500
    monkeypatch.setattr("raysep.scoring.cache.NEIGHBORS", 1100 * 1999)
    assert len(LayerScores(X, y, TorchBackend(), ScoreConfig(sample=1500)).queries) == 1100
    assert LayerScores(X, y, TorchBackend(), ScoreConfig(sample=4005)).queries is None
