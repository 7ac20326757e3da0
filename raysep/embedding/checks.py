"""Checks of embeddings and labels that a user or another program made."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.errors import InputError


def checked_matrix(X: Any, name: str, rows: int) -> NDArray[np.float32]:
    """X as (N, D) float32. Raises InputError."""
    try:
        array = np.asarray(X.detach().cpu().float() if hasattr(X, "detach") else X)
        if np.iscomplexobj(array):
            raise TypeError("complex numbers")
        with np.errstate(over="ignore"):
            matrix: NDArray[np.float32] = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}: expected numbers of shape (rows, features), got {type(X).__name__} ({error})"
        ) from None
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise InputError(f"{name}: expected shape (rows, features), got {matrix.shape}")
    if len(matrix) != rows:
        raise InputError(f"{name} has {len(matrix)} rows, y has {rows} labels: expected as many")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise InputError(
            f"{name}: row {row}, column {column} is {matrix[row, column]}: expected finite numbers in "
            "the range of float32"
        )
    return matrix


def _not_a_label(value: Any) -> str:
    # pandas' NA has no truth value; NaN and NaT differ from themselves.
    missing = value is None or type(value).__name__ in ("NAType", "NaTType") or value != value
    return "has no label" if missing else f"is {value!r}"


def checked_labels(y: Any) -> NDArray[np.int64]:
    """Labels as integers from 0, in the order of the sorted names. Raises InputError."""
    values = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
    if values.ndim != 1:
        raise InputError(f"y: expected shape (rows,), got {values.shape}")
    if values.dtype.kind == "O" or isinstance(y, list | tuple):
        # NumPy would turn the other labels of a list with a text into text.
        for row, value in enumerate(y):
            if not isinstance(value, str | int | np.integer | np.bool_):
                raise InputError(f"y: row {row} {_not_a_label(value)}: expected text or integers")
        texts = {isinstance(value, str) for value in y}
        if len(texts) == 2:
            raise InputError("y: expected text or integers, got both")
        try:
            values = values.astype(str if True in texts else np.int64)
        except OverflowError:
            raise InputError("y: expected integers of at most 64 bits") from None
    if values.dtype.kind not in "SUiub":
        row = int(np.isnan(values).argmax()) if values.dtype.kind == "f" else 0
        raise InputError(f"y: row {row} is {values[row]}: expected text or integers; convert the labels")
    names, index = np.unique(values, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"y: expected two classes or more, got {len(names)}")
    return index.astype(np.int64)
