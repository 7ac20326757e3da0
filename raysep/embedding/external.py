"""Embeddings of other programs: npz files, Parquet files and directories of npy files, read one layer at a time."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysep.errors import InputError
from raysep.storage.store import Storage

# Names of the array, column or file of labels, in the order of preference.
LABELS = ("labels", "label", "y")
FORMATS = "expected an .npz file, a .parquet file, or a directory of .npy or .parquet files"


@dataclass(frozen=True)
class External:
    """Embeddings that another program made.

    Attributes:
        layers: names of the layers, from the first to the last: in the order of the file; natural order of the names of
            files in a directory.
        labels: (N,) labels.
        read: reads the array of a layer, by name.
    """

    layers: list[str]
    labels: NDArray[Any]
    read: Callable[[str], NDArray[Any]]


def open_external(uri: str, labels: str | None = None) -> External:
    """Open the embeddings of a file or directory.

    Args:
        uri: an `.npz` file with an array per layer; a `.parquet` file or a directory of such, with a column of lists
            per layer; a directory of `.npy` files, one per layer (`<layer>.npy`, or thingsvision's
            `<layer>/features.npy`).
        labels: name of the array, column or file (without suffix) of labels; unset: the first of `LABELS`.

    Raises:
        InputError: none of these, or it lacks labels or layers.
    """
    directory, _, name = uri.rstrip("/").rpartition("/")
    suffix = name.rpartition(".")[2].lower()
    try:
        if suffix == "npz":
            return _npz(Storage(directory or "."), name, uri, labels)
        if suffix == "parquet" and Storage(directory or ".").is_file(name):
            return _parquet(Storage(directory or "."), [name], uri, labels)
        store = Storage(uri)
        files = store.files()
        if tables := [file for file in files if file.endswith(".parquet")]:
            return _parquet(store, tables, uri, labels)
        if arrays := [file for file in files if file.endswith(".npy")]:
            return _npy(store, arrays, uri, labels)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{uri} doesn't exist: {FORMATS}") from None
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{uri} can't be read: {' '.join(str(error).split())}") from None
    raise InputError(f"{uri} holds no embeddings: {FORMATS}")


def _npz(store: Storage, name: str, uri: str, labels: str | None) -> External:
    def read(array: str) -> NDArray[Any]:
        found: NDArray[Any] = store.read_with(name, lambda file: np.load(file)[array])
        return found

    names = store.read_with(name, lambda file: list(np.load(file).files))
    chosen = _labels_among(names, uri, labels, "array")
    return External(_layers(names, chosen, uri), read(chosen), read)


def _npy(store: Storage, files: Sequence[str], uri: str, labels: str | None) -> External:
    file_of = {file.removesuffix(".npy").removesuffix("/features"): file for file in sorted(files, key=_natural)}

    def read(array: str) -> NDArray[Any]:
        found: NDArray[Any] = store.read_with(file_of[array], np.load)
        return found

    chosen = _labels_among(list(file_of), uri, labels, "file")
    return External(_layers(list(file_of), chosen, uri), read(chosen), read)


def _parquet(store: Storage, files: Sequence[str], uri: str, labels: str | None) -> External:
    def column(name: str) -> pa.ChunkedArray:
        parts = [
            store.read_with(file, lambda opened: pq.ParquetFile(opened).read(columns=[name]))[name] for file in files
        ]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks])

    def read(name: str) -> NDArray[Any]:
        values = column(name)
        widths = pc.list_value_length(values).unique().to_pylist()
        if len(widths) != 1 or widths[0] is None:
            found = "a missing row" if None in widths else f"{min(widths)} to {max(widths)} values"
            raise InputError(f"{uri}: column {name}: expected lists of the same length in all rows, got {found}")
        flat = pa.chunked_array([chunk.flatten() for chunk in values.chunks])
        vectors: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(len(values), widths[0])
        return vectors

    schema = store.read_with(files[0], lambda file: pq.ParquetFile(file).schema_arrow)
    chosen = _labels_among(schema.names, uri, labels, "column")
    lists = [
        field.name
        for field in schema
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type)
    ]
    return External(_layers(lists, chosen, uri), np.array(column(chosen).to_pylist(), dtype=object), read)


def _labels_among(names: Sequence[str], uri: str, labels: str | None, what: str) -> str:
    wanted = LABELS if labels is None else (labels,)
    for name in wanted:
        if name in names:
            return name
    raise InputError(
        f"{uri} has no {what} of labels: expected {' or '.join(wanted)}, got {', '.join(names) or 'none'}; --labels "
        "names another"
    )


def _layers(names: Sequence[str], labels: str, uri: str) -> list[str]:
    layers = [name for name in names if name != labels]
    if not layers:
        raise InputError(f"{uri} has labels, {labels}, but no layer: {FORMATS}")
    return layers


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key with numbers by value: `blocks.2` before `blocks.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
