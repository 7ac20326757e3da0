import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_score

from raysep.scoring import health
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.centring import centred
from tests.scoring.test_formulas import blobs


def test_effective_rank_counts_directions() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(30, 5)))[0].T
    X = (rng.normal(size=(2000, 5)) @ basis).astype(np.float32)
    assert health.effective_rank(centred(X)) == pytest.approx(5, abs=0.05)
    assert health.effective_rank(centred(X[:20])) < 5.01
    s = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    p = s[:5] / s[:5].sum()
    assert health.effective_rank(centred(X)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), abs=0.05)
    assert health.effective_rank(np.zeros((5, 3), np.float32)) is None


def test_start_agreement_by_hand() -> None:
    same = np.array([[0, 0, 1, 1], [1, 1, 0, 0]])
    assert health.start_agreement(same) == 1.0
    assert health.start_agreement(np.array([[0, 0, 1, 1], [0, 1, 0, 1]])) == -0.5
    assert health.start_agreement(same[:1]) is None
    assert health.start_agreement(np.zeros((2, 5), np.int32)) == 1.0


@pytest.mark.parametrize("K", [1, 2, 9])
def test_start_agreement_equals_scikit_learn(K: int) -> None:
    labels = np.random.default_rng(K).integers(0, K, (4, 50)).astype(np.int32)
    pairs = [adjusted_rand_score(a, b) for i, a in enumerate(labels) for b in labels[:i]]
    assert health.start_agreement(labels) == pytest.approx(np.mean(pairs), abs=1e-12)


@pytest.mark.parametrize("K", [2, 4, 7])
def test_the_number_of_separated_classes_is_found(K: int) -> None:
    X, _ = blobs([40] * K, spread=0.1, D=16)
    assert health.estimated_classes(X, SklearnBackend(), 0, 10) == K


def test_the_estimate_maximises_scikit_learns_silhouette() -> None:
    X, _ = blobs([40, 30, 35], spread=1.2)
    backend = SklearnBackend()
    theirs = {k: silhouette_score(X, backend.kmeans(X, k, 3, 0).best) for k in range(2, 9)}
    assert health.estimated_classes(X, backend, 0, 8) == max(theirs, key=lambda k: theirs[k])


def test_estimates_without_classes() -> None:
    backend = SklearnBackend()
    assert health.estimated_classes(np.ones((10, 2), np.float32), backend, 0, 5) is None
    assert health.estimated_classes(np.eye(2, dtype=np.float32), backend, 0, 5) is None
    assert health.estimated_classes(np.eye(3, dtype=np.float32), backend, 0, 5) == 2
