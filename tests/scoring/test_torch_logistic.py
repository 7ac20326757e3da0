import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from raysep.scoring import torch_logistic
from raysep.scoring.centring import centred
from tests.scoring.test_formulas import blobs

STRENGTHS = [1e-3, 1e-1, 1.0]


def fits(X: np.ndarray, y: np.ndarray, training: np.ndarray) -> torch_logistic._Fits:
    rows = torch.from_numpy(centred(X))
    problems = torch_logistic.problems_of(rows, torch.from_numpy(training), [STRENGTHS] * len(training))
    found = torch_logistic._Fits(
        rows, torch.from_numpy(y), int(y.max()) + 1, problems, torch_logistic.curvature_of(rows)
    )
    while found.advance():
        pass
    return found


def folds(N: int) -> np.ndarray:
    return np.stack([np.arange(N) % 3 != fold for fold in range(3)])


@pytest.mark.parametrize(("D", "spread"), [(5, 1.5), (60, 3.0), (300, 4.0)])
@pytest.mark.parametrize("block", [1000, 2**24], ids=["blocks", "one block"])
def test_every_problem_equals_scikit_learn(D: int, spread: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_logistic, "BLOCK_BYTES", block)
    X, y = blobs([70, 60, 80], spread=spread, D=D)
    training = folds(len(y))
    predicted = fits(X, y, training).predicted.numpy()
    for fold, rows in enumerate(training):
        scaler = StandardScaler().fit(X[rows])
        for position, C in enumerate(STRENGTHS):
            model = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(scaler.transform(X[rows]), y[rows])
            ours = predicted[fold * len(STRENGTHS) + position]
            assert (ours == model.predict(scaler.transform(X))).mean() > 0.97
            accuracy = (model.predict(scaler.transform(X[~rows])) == y[~rows]).mean()
            assert (ours[~rows] == y[~rows]).mean() == pytest.approx(accuracy, abs=0.03)


def test_leading_eigenvectors_suffice_as_preconditioner(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs([70, 60, 80], spread=4.0, D=120)
    whole = fits(X, y, folds(len(y))).predicted
    monkeypatch.setattr(torch_logistic, "ALL_DIRECTIONS", 64)
    monkeypatch.setattr(torch_logistic, "LEADING", 16)
    leading = fits(X, y, folds(len(y))).predicted
    assert (whole == leading).float().mean() > 0.98


def test_the_loss_never_rises_and_few_iterations_are_enough() -> None:
    # Strongly correlated features slow down L-BFGS without a preconditioner.
    rng = np.random.default_rng(0)
    X, y = blobs([70, 60, 80], spread=2.0, D=40)
    X = (X @ rng.normal(size=(40, 40)) * np.geomspace(1, 1e-2, 40) @ rng.normal(size=(40, 40))).astype(np.float32)
    rows = torch.from_numpy(centred(X))
    problems = torch_logistic.problems_of(rows, torch.ones(1, len(y), dtype=torch.bool), [[1.0]])
    found = torch_logistic._Fits(rows, torch.from_numpy(y), 3, problems, torch_logistic.curvature_of(rows))
    losses = [float(found.loss)]
    while found.advance():
        losses.append(float(found.loss))
    assert (np.diff(losses) <= 1e-6).all()
    scaler = StandardScaler().fit(X)
    model = LogisticRegression(C=1.0, tol=1e-6, max_iter=5000).fit(scaler.transform(X), y)
    assert len(losses) < model.n_iter_[0] / 2


def test_a_feature_that_is_constant_in_a_training_set_does_no_harm() -> None:
    X, y = blobs([40, 40], spread=0.3, D=4)
    X[:, 0] = np.where(np.arange(80) == 79, 3.0, 1.0)
    X[:, 1] = 7
    training = np.ones((1, 80), bool)
    training[0, 79] = False
    problems = torch_logistic.problems_of(torch.from_numpy(centred(X)), torch.from_numpy(training), [[1.0]])
    assert problems.scale[0, :2].tolist() == [1.0, 1.0]
    assert (fits(X, y, training).predicted[1].numpy() == y)[:79].mean() > 0.9
