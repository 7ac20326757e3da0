import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from raysep.separability.backends import SklearnEngine
from raysep.separability.names import METRICS
from raysep.separability.scoring import METRIC_OF, score_layer
from tests.separability.test_metrics import blobs


def values(X, y, protocol="default", metrics=METRICS, seed=0) -> dict:
    scores = score_layer(X, y, [(protocol, metric) for metric in metrics], SklearnEngine(), seed)
    assert [score.metric for score in scores] == list(metrics)
    return {score.metric: score.value for score in scores}


def test_every_name_has_a_metric():
    assert set(METRIC_OF) == set(METRICS)


def test_the_paper_protocol_is_direct_calls_of_scikit_learn():
    X, y = blobs([220, 200, 250], spread=1.5)
    found = values(X, y, "paper")
    clusters = KMeans(3, init="k-means++", n_init=1, random_state=42).fit(X).labels_
    assert found["nmi"] == normalized_mutual_info_score(y, clusters)
    neighbors = NearestNeighbors(n_neighbors=500).fit(X).kneighbors(return_distance=False)
    assert found["knn_purity"] == pytest.approx((y[neighbors] == y[:, None]).sum(axis=1).mean() / 500, abs=1e-6)


def test_the_paper_divides_by_500_even_where_fewer_neighbours_exist():
    X, y = blobs([20, 20], spread=0.01)
    scores = score_layer(X, y, [("paper", "knn_purity")], SklearnEngine(), 0)
    assert scores[0].k == 39
    assert scores[0].value == pytest.approx(19 / 500)


def test_the_default_protocol_takes_the_best_of_ten_starts_and_what_the_smallest_class_allows():
    X, y = blobs([30, 50], spread=1.0)
    scores = {s.metric: s for s in score_layer(X, y, [("default", m) for m in METRICS], SklearnEngine(), 3)}
    clusters = KMeans(2, n_init=10, random_state=3).fit(X).labels_
    assert scores["nmi"].value == normalized_mutual_info_score(y, clusters)
    assert {m: s.k for m, s in scores.items()} == {
        "nmi": 2,
        "ami": 2,
        "ari": 2,
        "knn_purity": 29,
        "nn1": 1,
        "r_precision": None,
        "linear_probe": None,
        "few_shot_1": 1,
        "few_shot_5": 5,
    }
    assert all(s.n == 80 and s.backend == "sklearn" and s.seconds >= 0 for s in scores.values())


def test_shared_metrics_are_computed_once_for_both_protocols():
    X, y = blobs([30, 30])
    wanted = [(p, m) for p in ("default", "paper") for m in METRICS]
    scores = {(s.protocol, s.metric): s for s in score_layer(X, y, wanted, SklearnEngine(), 42)}
    assert len(scores) == 18
    assert scores["paper", "linear_probe"].seconds == 0
    alone = score_layer(X, y, [("paper", "linear_probe")], SklearnEngine(), 42)[0]
    assert scores["paper", "linear_probe"].value == scores["default", "linear_probe"].value == alone.value


def test_separated_classes_score_one_whatever_their_names():
    X, y = blobs([30, 40, 50], spread=1e-4)
    for metric, value in values(X, 100 - 7 * y).items():
        if metric == "knn_purity":
            assert value == pytest.approx(1.0)
        else:
            assert value == 1.0, metric


def test_more_separation_scores_higher():
    for metric in METRICS:
        series = [values(*blobs([40, 40, 40], spread=s, seed=1), metrics=[metric])[metric] for s in (3, 1, 0.2)]
        assert series[0] < series[1] <= series[2], metric


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_layer_with_values_that_are_not_finite_has_no_scores(broken: float):
    X, y = blobs([20, 20])
    X[3, 2] = broken
    assert set(values(X, y).values()) == {None}


def test_one_class_and_constant_features():
    X, y = blobs([20])
    assert set(values(X, y).values()) == {None}
    constant = values(np.ones((40, 3), np.float32), np.arange(40) % 2)
    assert constant["nmi"] == constant["ami"] == constant["ari"] == 0
    assert constant["linear_probe"] == 0.5
