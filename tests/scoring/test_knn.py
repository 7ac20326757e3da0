"""The weighted nearest-neighbour classifier, against a direct implementation."""

import numpy as np
import pytest

from raysep.config import ScoreConfig
from raysep.scoring import knn
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.backends.torch import TorchBackend
from raysep.scoring.scoring import score_layer
from tests.scoring.test_formulas import blobs


def direct(X: np.ndarray, y: np.ndarray, k: int = 20) -> float:
    """Image by image, in float64."""
    unit = X.astype(np.float64) / np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
    right = 0
    for i in range(len(y)):
        similarity = unit @ unit[i]
        similarity[i] = -np.inf
        nearest = np.argsort(-similarity)[:k]
        votes = {label: np.exp(similarity[nearest][y[nearest] == label] / 0.07).sum() for label in set(y[nearest])}
        right += max(votes, key=lambda label: votes[label]) == y[i]
    return right / len(y)


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("backend", [SklearnBackend(), TorchBackend("cpu")], ids=lambda backend: backend.name)
def test_the_accuracy_equals_a_direct_implementation(backend: object, overwrite: bool, shift: float) -> None:
    X, y = blobs([40, 25, 60, 9], spread=1.2, D=8, seed=3)
    X = (X + shift).astype(np.float32)
    expected = direct(X, y)
    assert 0.3 < expected < 0.99
    wanted = [("default", "nmi"), ("default", "knn_accuracy"), ("paper", "knn_accuracy")]
    wanted = wanted[:2] if overwrite else wanted
    found = score_layer(X.copy(), y, wanted, backend, ScoreConfig(resamples=20), overwrite)  # type: ignore[arg-type]
    for score in found[1:]:
        assert score.measured.value == pytest.approx(expected, abs=1e-6)
        assert score.measured.k == 20
        assert score.measured.halves is not None
        assert score.measured.halves.shape == (10, 2)


def test_halves_are_classified_from_their_own_images() -> None:
    X, y = blobs([30, 30], spread=1.5, D=4, seed=1)
    rng = np.random.default_rng(0)
    in_a = np.stack([rng.permutation(60) < 30 for _ in range(3)], axis=1)
    unit = knn.unit_rows(X.astype(np.float32))
    order = np.argsort(-(unit @ unit.T) + 3 * np.eye(60), axis=1)[:, :59]
    everyone = np.arange(60)
    values = knn.accuracy_on_halves(y, order, knn.vote_weights(unit, order, everyone), everyone, in_a)
    for split in range(3):
        for half, members in enumerate((in_a[:, split], ~in_a[:, split])):
            assert values[split, half] == pytest.approx(direct(X[members], y[members]), abs=1e-6)


def test_the_length_of_a_vector_does_not_matter_and_may_be_zero() -> None:
    X, y = blobs([20, 20], spread=1.0, D=4, seed=2)
    X = X.astype(np.float32)
    assert knn.unit_rows(np.zeros((1, 4), np.float32)).tolist() == [[0.0] * 4]
    settings = ScoreConfig(resamples=0)
    scales = np.random.default_rng(0).uniform(0.1, 10, (len(y), 1)).astype(np.float32)
    one, other = (
        score_layer(rows, y, [("default", "knn_accuracy")], TorchBackend("cpu"), settings)[0].measured.value
        for rows in (X, X * scales)
    )
    assert one == pytest.approx(other, abs=1e-6)


def test_equal_votes_are_shared() -> None:
    right = knn.right_votes(np.array([0, 0, 1]), np.array([[1, 2]]), np.array([[0.5, 0.5]]), np.array([0]))
    assert right.tolist() == [0.5]
