import sys
import types

import numpy as np
import pytest

from raysep.scoring.backends.cuml import CumlBackend, in_batches


def test_input_that_crashes_cuml_or_gives_wrong_results_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuml", "cuml.cluster", "cuml.neighbors", "cupy"):
        module = types.ModuleType(name)
        module.KMeans = module.NearestNeighbors = None  # type: ignore[attr-defined]
        module.asarray = np.asarray  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    X = np.ones((3, 2), np.float32)
    on_device = CumlBackend().to_device(X)
    with pytest.raises(ValueError, match="4 rows or more"):
        CumlBackend().kmeans(on_device, 4, 1, 0)
    with pytest.raises(ValueError, match="4 rows or more"):
        CumlBackend().kmeans(np.ones((9, 2)), 4, 1, 0, np.arange(3))
    with pytest.raises(ValueError, match="more than 3 rows"):
        CumlBackend().neighbors(on_device, 3)
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        CumlBackend().to_device(X)


def test_batches_are_halved_where_memory_runs_out() -> None:
    sizes: list[int] = []

    def search(queries: np.ndarray) -> np.ndarray:
        sizes.append(len(queries))
        if len(queries) > 3:
            raise MemoryError
        return queries[:, None] * 2

    np.testing.assert_array_equal(in_batches(search, np.arange(10), 8)[:, 0], np.arange(10) * 2)
    assert sizes == [8, 4, 2, 2, 2, 2, 2]

    def never(queries: np.ndarray) -> np.ndarray:
        raise MemoryError

    with pytest.raises(MemoryError):
        in_batches(never, np.arange(4), 4)
