"""The Parquet shards of one checkpoint's embeddings of one split.

A shard set is a directory of `part-*.parquet` files and a `_manifest.json`. The manifest is written last and lists the
files of the shard set: without it the shard set doesn't exist, and unlisted files are ignored.
"""

import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from raysep.config import Dtype
from raysep.errors import StageError
from raysep.models.layers import Layer
from raysep.storage.store import Storage

MANIFEST = "_manifest.json"
# Size of the temporary copies for sorting a layer.
COPIED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ShardSet:
    """Identifies a shard set by checkpoint and split."""

    model_id: str
    trial: int
    step: int
    split: str

    @property
    def directory(self) -> str:
        """Directory of the shard set, relative to the run."""
        return f"embeddings/model={self.model_id}/trial={self.trial}/step={self.step}/split={self.split}"


def shard_set_at(path: str) -> ShardSet:
    """Parse the path of a file of a shard set, the inverse of `ShardSet.directory`.

    >>> shard_set_at(ShardSet("vit", 0, 10, "unseen").directory + "/_manifest.json")
    ShardSet(model_id='vit', trial=0, step=10, split='unseen')
    """
    _, model, trial, step, split, *_ = (part.partition("=")[2] for part in path.split("/"))
    return ShardSet(model, int(trial), int(step), split)


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file of a shard set, relative to its directory."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of a shard set.

    Attributes:
        key: cache key: hash of everything that the embeddings depend on.
        rows: number of embedded images.
        files: files of the shard set; others in the directory are ignored.
        layers: layers, in the order of the columns.
        failed: reason for each unreadable image, by image_id.
        checkpoint_sha256: hash of the weights.
        versions: package versions at the time of embedding.
    """

    key: str
    rows: int
    files: list[ShardFile]
    layers: list[Layer]
    failed: dict[str, str]
    dtype: Dtype
    checkpoint_sha256: str
    versions: dict[str, str]


_MANIFEST = TypeAdapter(Manifest)


def column(layer: int) -> str:
    """Column name of a layer."""
    return f"layer_{layer:02d}"


def key_of(**parts: object) -> str:
    """Hash named values to a cache key, whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def schema(layers: Sequence[Layer], dtype: Dtype) -> pa.Schema:
    """Schema of a shard file: image_id, label, and a fixed-size list of floats per layer."""
    value = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema(
        [("image_id", pa.string()), ("label", pa.int32())]
        + [(column(layer.index), pa.list_(value, layer.dim)) for layer in layers]
    )


def write_part(
    store: Storage,
    directory: str,
    ids: Sequence[str],
    labels: Sequence[int],
    vectors: Sequence[NDArray[np.float32]],
    layers: Sequence[Layer],
    dtype: Dtype,
) -> ShardFile:
    """Write one shard file with a unique name, so that repeated attempts at a block never overwrite each other.

    Args:
        directory: directory of the shard set.
        ids, labels: (n,) image ids and labels.
        vectors: (n, D) per layer.

    Raises:
        StageError: a value exceeds the range of float16.
    """
    columns = [_fixed_size_list(layer, values, dtype) for layer, values in zip(layers, vectors, strict=True)]
    table = pa.Table.from_arrays(
        [pa.array(ids, pa.string()), pa.array(labels, pa.int32()), *columns], schema=schema(layers, dtype)
    )
    sink = io.BytesIO()
    # Embeddings hardly compress: dictionaries and codecs would only cost time.
    pq.write_table(table, sink, compression="none", use_dictionary=["image_id"], write_statistics=["label"])
    content = sink.getvalue()
    name = f"part-{uuid.uuid4().hex}.parquet"
    store.write_bytes(f"{directory}/{name}", content)
    return ShardFile(name, len(ids), len(content), hashlib.sha256(content).hexdigest())


def commit(store: Storage, shard_set: ShardSet, manifest: Manifest) -> None:
    """Write the manifest, which makes the shard set exist."""
    store.write_json(f"{shard_set.directory}/{MANIFEST}", asdict(manifest))


def read_manifest(store: Storage, shard_set: ShardSet) -> Manifest | None:
    """Read the manifest of a shard set; None if it is missing, or a listed file is missing or incomplete."""
    try:
        content = store.read_bytes(f"{shard_set.directory}/{MANIFEST}")
    except FileNotFoundError:
        return None
    with store.understood(f"{shard_set.directory}/{MANIFEST}"):
        manifest = _MANIFEST.validate_json(content)
    sizes = store.sizes(shard_set.directory)
    complete = all(sizes.get(f"{shard_set.directory}/{file.name}") == file.bytes for file in manifest.files)
    return manifest if complete else None


def read_layer(
    store: Storage, shard_set: ShardSet, manifest: Manifest, layer: int
) -> tuple[list[str], NDArray[np.int32], NDArray[np.float32]]:
    """Read one layer of a shard set, sorted by image_id, without the columns of other layers.

    Returns:
        Image ids (N,), labels (N,) and X (N, D), float32.
    """
    names, labels = ["image_id", "label", column(layer)], []
    ids: list[str] = []
    # Filled file by file and sorted in place, to hold the layer in memory only once.
    X = np.empty((0, 0), np.float32)
    for file in manifest.files:
        path = f"{shard_set.directory}/{file.name}"
        table = store.read_with(path, lambda opened: pq.ParquetFile(opened).read(columns=names))
        flat = table[column(layer)].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(table.num_rows, -1)
        if not ids:
            X = np.empty((sum(each.rows for each in manifest.files), vectors.shape[1]), np.float32)
        X[len(ids) : len(ids) + len(vectors)] = vectors
        ids += table["image_id"].to_pylist()
        labels.append(table["label"].to_numpy())
    order = np.argsort(np.array(ids), kind="stable")
    _permute(X, order)
    return [ids[position] for position in order], np.concatenate(labels)[order], X


def _permute(X: NDArray[np.float32], order: NDArray[np.int64]) -> None:
    """Reorder the rows in place, in groups of columns."""
    at_once = max(1, COPIED_BYTES // (X.itemsize * max(1, len(X))))
    for first in range(0, X.shape[1], at_once):
        X[:, first : first + at_once] = X[order, first : first + at_once]


def _fixed_size_list(layer: Layer, values: NDArray[np.float32], dtype: Dtype) -> pa.Array:
    flat: NDArray[np.floating[Any]] = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = flat.astype(np.float16)
        if not np.isfinite(half[np.isfinite(flat)]).all():
            raise StageError(
                f"layer {layer.index} ({layer.name}) has values up to {np.abs(flat).max():.3g}, "
                "beyond float16's maximum of 65504: set embed.dtype to float32"
            )
        flat = half
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), layer.dim)
