from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from raysep.config import ScoreConfig
from raysep.config.names import DIAGNOSTIC, DIAGNOSTICS
from raysep.config.registry import METRICS
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.backends.torch import TorchBackend
from raysep.scoring.cache import LayerScores
from raysep.scoring.scoring import score_layer, score_layer_with_fallback
from tests.scoring.test_formulas import blobs


def values(X: Any, y: Any, protocol: Any = "default", metrics: Any = METRICS, seed: Any = 0) -> dict:
    wanted = [(protocol, metric) for metric in metrics]
    scores = score_layer(X, y, wanted, SklearnBackend(), ScoreConfig(seed=seed, resamples=0))
    assert [score.metric for score in scores] == list(metrics)
    return {score.metric: score.measured.value for score in scores}


def test_the_paper_protocol_equals_direct_calls_of_scikit_learn() -> None:
    X, y = blobs([220, 200, 250], spread=1.5)
    found = values(X, y, "paper")
    clusters = KMeans(3, init="k-means++", n_init=1, random_state=42).fit(X).labels_
    assert found["nmi"] == normalized_mutual_info_score(y, clusters)
    neighbors = NearestNeighbors(n_neighbors=500).fit(X).kneighbors(return_distance=False)
    assert found["knn_purity"] == pytest.approx((y[neighbors] == y[:, None]).sum(axis=1).mean() / 500, abs=1e-6)


def test_the_paper_divides_by_500_even_where_fewer_neighbours_exist() -> None:
    X, y = blobs([20, 20], spread=0.01)
    scores = score_layer(X, y, [("paper", "knn_purity")], SklearnBackend(), ScoreConfig())
    assert scores[0].measured.k == 39
    assert scores[0].measured.value == pytest.approx(19 / 500)


def test_the_default_protocol_uses_the_best_of_ten_starts_and_k_of_the_smallest_class() -> None:
    X, y = blobs([30, 50], spread=1.0)
    scores = {
        s.metric: s for s in score_layer(X, y, [("default", m) for m in METRICS], SklearnBackend(), ScoreConfig(seed=3))
    }
    clusters = KMeans(2, n_init=10, random_state=3).fit(X).labels_
    assert scores["nmi"].measured.value == normalized_mutual_info_score(y, clusters)
    assert {m: s.measured.k for m, s in scores.items()} == {
        "nmi": 2,
        "knn_accuracy": 20,
        "ami": 2,
        "ari": 2,
        "knn_purity": 29,
        "nn1": 1,
        "r_precision": None,
        "linear_probe": None,
        "few_shot_1": 1,
        "few_shot_2": 2,
        "few_shot_5": 5,
        "few_shot_10": 10,
        "few_shot_20": 20,
    }
    assert all(s.n == 80 and s.backend == "sklearn" and s.seconds >= 0 for s in scores.values())


def test_shared_metrics_are_computed_once_for_both_protocols() -> None:
    X, y = blobs([30, 30])
    wanted = [(p, m) for p in ("default", "paper") for m in METRICS]
    scores = {(s.protocol, s.metric): s for s in score_layer(X, y, wanted, SklearnBackend(), ScoreConfig(seed=42))}
    assert len(scores) == 26
    assert scores["paper", "linear_probe"].seconds < scores["default", "linear_probe"].seconds / 2
    alone = score_layer(X, y, [("paper", "linear_probe")], SklearnBackend(), ScoreConfig(seed=42))[0].measured
    together = [scores[protocol, "linear_probe"].measured for protocol in ("paper", "default")]
    assert together[0].value == together[1].value == alone.value


def test_every_score_has_interval_halves_and_chance_level() -> None:
    X, y = blobs([40, 44, 41], spread=1.5)
    wanted = [("default", m) for m in METRICS] + [("paper", "knn_purity")]
    for score in score_layer(X, y, wanted, SklearnBackend(), ScoreConfig(resamples=40)):
        found = score.measured
        assert found.interval[0] <= found.value <= found.interval[1], score.metric
        assert found.halves.shape == (20, 2)
        assert found.se >= 0
        assert found.halves.mean() == pytest.approx(found.value, abs=0.2), score.metric
        # Protocol `paper` counts all 124 other images as neighbours here, and divides by 500.
        assert found.shuffled < found.value or score.protocol == "paper", score.metric
        assert (found.starts_sd is not None) == (score.metric in {"nmi", "ami", "ari"})


def test_without_resamples_there_are_no_intervals() -> None:
    X, y = blobs([30, 30])
    for metric in ("nmi", "nn1", "linear_probe", "few_shot_1"):
        none = score_layer(X, y, [("default", metric)], SklearnBackend(), ScoreConfig(resamples=0))[0].measured
        assert none.value is not None
        assert none.interval is none.halves is none.se is None


def test_a_tiny_class_makes_only_some_metrics_undefined() -> None:
    X, y = blobs([60, 50, 3], spread=1.0)
    wanted = [("default", metric) for metric in METRICS]
    found = {s.metric: s.measured for s in score_layer(X, y, wanted, SklearnBackend(), ScoreConfig())}
    # The probe needs four images per class, few-shot more than `shots`.
    undefined = {"linear_probe", "few_shot_5", "few_shot_10", "few_shot_20"}
    assert {metric for metric, measured in found.items() if measured.value is None} == undefined
    for metric in set(METRICS) - undefined:
        measured = found[metric]
        assert measured.interval[0] <= measured.value <= measured.interval[1], metric
        # Half of three images is too few for two labelled ones.
        assert (measured.halves is None) == (metric == "few_shot_2"), metric
    # Only tiny classes: no split-halves.
    tiny = score_layer(*blobs([3, 3, 3, 3]), [("default", "nmi")], SklearnBackend(), ScoreConfig())[0].measured
    assert tiny.value is not None
    assert tiny.interval is tiny.se is None


def test_diagnostics_are_rows_like_scores() -> None:
    X, y = blobs([30, 30])
    X[:, 0] = 1
    found = score_layer(X, y, [(DIAGNOSTIC, name) for name in DIAGNOSTICS], SklearnBackend(), ScoreConfig())
    assert [score.metric for score in found] == list(DIAGNOSTICS)
    by_name = {score.metric: score.measured.value for score in found}
    assert by_name["constant_features"] == 1
    assert by_name["nonfinite_rows"] == by_name["duplicate_rows"] == by_name["empty_clusters"] == 0
    X[3] = np.nan
    broken = {
        s.metric: s.measured.value
        for s in score_layer(X, y, [(DIAGNOSTIC, n) for n in DIAGNOSTICS], SklearnBackend(), ScoreConfig())
    }
    assert broken["nonfinite_rows"] == 1
    assert broken["effective_rank"] is broken["start_agreement"] is None


def test_separated_classes_score_one_whatever_their_names() -> None:
    X, y = blobs([30, 40, 50], spread=1e-4)
    for metric, value in values(X, 100 - 7 * y).items():
        if metric == "knn_purity":
            assert value == pytest.approx(1.0)
        else:
            assert value == 1.0, metric


def test_more_separation_scores_higher() -> None:
    for metric in METRICS:
        series = [values(*blobs([40, 40, 40], spread=s, seed=1), metrics=[metric])[metric] for s in (3, 1, 0.2)]
        assert series[0] < series[1] <= series[2], metric


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_layer_with_nonfinite_values_has_no_scores(broken: float) -> None:
    X, y = blobs([20, 20])
    X[3, 2] = broken
    assert set(values(X, y).values()) == {None}


def test_one_class_and_constant_features() -> None:
    X, y = blobs([20])
    assert set(values(X, y).values()) == {None}
    constant = values(np.ones((40, 3), np.float32), np.arange(40) % 2)
    assert constant["nmi"] == constant["ami"] == constant["ari"] == 0
    assert constant["linear_probe"] == 0.5


class FullGpu(TorchBackend):
    """A GPU backend that runs out of memory."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.gpu, self.error = True, error

    def neighbors(self, *_: object, **__: object) -> np.ndarray:
        raise self.error


@pytest.mark.parametrize(
    "error", [MemoryError("rmm"), torch.OutOfMemoryError("CUDA"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_scoring_falls_back_to_the_cpu_when_gpu_memory_runs_out(error: Exception) -> None:
    X, y = blobs([30, 30])
    fallbacks: list[int] = []

    def scored(backends: list) -> list:
        return score_layer_with_fallback(
            X, y, [("default", "nn1")], backends, ScoreConfig(), lambda: fallbacks.append(1)
        )

    (score,) = scored([FullGpu(error), SklearnBackend()])
    assert score.backend == "sklearn"
    assert score.measured.value == values(X, y, metrics=["nn1"])["nn1"]
    assert fallbacks == [1]
    with pytest.raises(type(error)):
        scored([FullGpu(error)])
    with pytest.raises(ValueError, match="other"):
        scored([FullGpu(ValueError("other")), SklearnBackend()])


def test_both_protocols_share_equal_intermediates() -> None:
    X, y = blobs([30, 30])
    backend, shared = SklearnBackend(), {}  # type: ignore[var-annotated]
    calls: list[int] = []
    backend.kmeans = lambda *a, **k: calls.append(1) or SklearnBackend().kmeans(*a, **k)  # type: ignore[func-returns-value, method-assign]
    one = LayerScores(X, y, backend, ScoreConfig(sample=1000), "default", shared)
    two = LayerScores(X, y, backend, ScoreConfig(sample=1000), "paper", shared)
    assert one.starts is two.starts
    assert calls == [1]


def test_diagnostics_of_x_use_the_unmodified_x() -> None:
    # Mean-centring makes the first two rows equal in float32.
    X = np.array([[1e-9], [2e-9], [1], [-3]] * 2, np.float32)
    X[4:] += 1
    y = np.arange(8) % 2
    wanted = [("default", "nn1"), (DIAGNOSTIC, "duplicate_rows")]
    alone = score_layer(X, y, wanted[1:], SklearnBackend(), ScoreConfig())[0].measured.value
    overwritten = score_layer(X.copy(), y, wanted, TorchBackend(), ScoreConfig(), overwrite=True)
    assert [score.metric for score in overwritten] == ["nn1", "duplicate_rows"]
    assert overwritten[1].measured.value == alone
