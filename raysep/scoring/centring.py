"""Rows around their mean: products of float32 rows far from the origin would lose the digits that tell them apart."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def centred(X: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """(N, D) less its mean row, which is taken in float64. Distances and rotations don't notice.

    Args:
        out: where to put it, which may be X itself.
    """
    moved: NDArray[Any] = np.subtract(X, X.mean(axis=0, dtype=np.float64).astype(X.dtype), out=out)
    return moved
