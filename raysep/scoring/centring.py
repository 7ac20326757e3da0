"""Mean-centring of features, to avoid cancellation in float32 dot products of rows far from the origin."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def centred(X: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Subtract the mean row, computed in float64. Distances between rows don't change.

    Args:
        X: (N, D).
        out: array for the result; may be X itself.
    """
    result: NDArray[Any] = np.subtract(X, X.mean(axis=0, dtype=np.float64).astype(X.dtype), out=out)
    return result
