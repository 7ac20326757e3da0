import sys
import types

import numpy as np
import pytest

from raysep.scoring.backends.cuml import CumlBackend, in_batches


def test_cuml_is_refused_what_would_crash_it_or_answer_wrongly(monkeypatch: pytest.MonkeyPatch):
    for name in ("cuml", "cuml.cluster", "cuml.neighbors", "cupy"):
        module = types.ModuleType(name)
        module.KMeans = module.NearestNeighbors = None
        module.asarray = np.asarray
        monkeypatch.setitem(sys.modules, name, module)
    X = np.ones((3, 2), np.float32)
    placed = CumlBackend().place(X)
    with pytest.raises(ValueError, match="4 rows or more"):
        CumlBackend().kmeans(placed, 4, 1, 0)
    with pytest.raises(ValueError, match="4 rows or more"):
        CumlBackend().kmeans(np.ones((9, 2)), 4, 1, 0, np.arange(3))
    with pytest.raises(ValueError, match="more than 3 rows"):
        CumlBackend().neighbors(placed, 3)
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        CumlBackend().place(X)


def test_batches_are_halved_where_memory_runs_out():
    asked: list[int] = []

    def ask(queries: np.ndarray) -> np.ndarray:
        asked.append(len(queries))
        if len(queries) > 3:
            raise MemoryError
        return queries[:, None] * 2

    np.testing.assert_array_equal(in_batches(ask, np.arange(10), 8)[:, 0], np.arange(10) * 2)
    assert asked == [8, 4, 2, 2, 2, 2, 2]

    def never(queries: np.ndarray) -> np.ndarray:
        raise MemoryError

    with pytest.raises(MemoryError):
        in_batches(never, np.arange(4), 4)
