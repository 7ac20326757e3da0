"""cuML against scikit-learn. The only tests that need a GPU."""

import numpy as np
import pytest

from raysep.config import ScoreConfig
from raysep.config.registry import METRICS
from raysep.scoring.backends import open_backend
from raysep.scoring.backends.cuml import CumlBackend
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.scoring import score_layer
from tests.scoring.test_formulas import blobs

PROBLEM = CumlBackend.problem()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(PROBLEM is not None, reason=f"{PROBLEM}")]


@pytest.mark.parametrize("sizes", [[500] * 5, [100, 200, 400, 800]], ids=["even", "uneven"])
@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("D", [16, 384])
def test_values_are_within_a_hundredth_of_scikit_learns(sizes: list[int], spread: float, D: int) -> None:
    X, y = blobs(sizes, spread=spread, D=D)
    wanted = [("default", metric) for metric in METRICS]
    cpu = score_layer(X, y, wanted, SklearnBackend(), ScoreConfig())
    gpu = score_layer(X, y, wanted, CumlBackend(), ScoreConfig())
    assert {score.backend for score in gpu} == {"cuml"}
    for ours, reference in zip(gpu, cpu, strict=True):
        assert ours.measured.value == pytest.approx(reference.measured.value, abs=0.01), ours.metric


def test_neighbours_far_from_the_origin_are_those_of_the_reference() -> None:
    X, _ = blobs([50, 50], D=32)
    backend = CumlBackend()
    near, far = (backend.neighbors(backend.to_device(rows), 10) for rows in (X, X + np.float32(1000)))
    assert (near == SklearnBackend().neighbors(X, 10)).mean() > 0.99
    assert (far == near).mean() > 0.95


def test_auto_selects_cuml() -> None:
    assert open_backend("auto").name == open_backend("cuml").name == "cuml"
