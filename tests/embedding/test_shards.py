from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysep.embedding.shards import (
    Manifest,
    ShardFile,
    ShardSet,
    commit,
    key_of,
    read_layer,
    read_manifest,
    schema,
    write_part,
)
from raysep.errors import StageError
from raysep.models.layers import Layer
from raysep.storage.store import Storage

LAYERS = [Layer(0, "stem", 0.0, 3, "mean"), Layer(1, "blocks.0", 1.0, 5, "mean")]
SET = ShardSet("m", 2, 100, "unseen")


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def write(store: Storage, ids: list[str], dtype: Any = "float32", seed: Any = 0) -> tuple[ShardFile, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    vectors = [rng.normal(size=(len(ids), layer.dim)).astype(np.float32) for layer in LAYERS]
    return write_part(store, SET.directory, ids, list(range(len(ids))), vectors, LAYERS, dtype), vectors


def manifest(files: list[ShardFile]) -> Manifest:
    return Manifest("key", sum(f.rows for f in files), files, LAYERS, {"z": "broken"}, "float32", "sha", {"ray": "1"})


def test_layers_are_read_by_image_id_from_several_files(store: Storage) -> None:
    first, a = write(store, ["d", "a"], seed=1)
    second, b = write(store, ["c", "b"], seed=2)
    commit(store, SET, manifest([first, second]))
    found = read_manifest(store, SET)
    assert found == manifest([first, second])
    ids, y, X = read_layer(store, SET, found, 1)
    assert ids == ["a", "b", "c", "d"]
    assert y.tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(X, np.stack([a[1][1], b[1][1], b[1][0], a[1][0]]))
    assert X.dtype == np.float32


def test_the_files_have_the_documented_schema(store: Storage) -> None:
    file, _ = write(store, ["a", "b"])
    table = pq.read_table(f"{store.root}/{SET.directory}/{file.name}")
    assert table.schema.equals(schema(LAYERS, "float32"))
    assert SET.directory == "embeddings/model=m/trial=2/step=100/split=unseen"
    assert table.schema.field("layer_01").type.list_size == 5


def test_files_that_the_manifest_does_not_list_are_ignored(store: Storage) -> None:
    file, _ = write(store, ["a"])
    write(store, ["a"])
    commit(store, SET, manifest([file]))
    found = read_manifest(store, SET)
    assert found is not None
    assert read_layer(store, SET, found, 0)[0] == ["a"]


def test_without_a_manifest_or_a_listed_file_there_is_no_shard_set(store: Storage) -> None:
    file, _ = write(store, ["a"])
    assert read_manifest(store, SET) is None
    commit(store, SET, manifest([file]))
    Path(f"{store.root}/{SET.directory}/{file.name}").unlink()
    assert read_manifest(store, SET) is None


def test_float16_is_read_as_float32_and_overflow_is_an_error(store: Storage) -> None:
    file, vectors = write(store, ["a", "b"], "float16")
    found = read_layer(store, SET, manifest([file]), 0)[2]
    np.testing.assert_allclose(found, vectors[0], atol=2e-3)
    assert found.dtype == np.float32
    vectors[0][0, 0] = 1e5
    with pytest.raises(StageError, match=r"stem.*1e\+05.*float32"):
        write_part(store, SET.directory, ["a", "b"], [0, 1], vectors, LAYERS, "float16")


def test_reading_a_layer_reads_its_column_and_little_else(store: Storage) -> None:
    layers = [Layer(i, f"l{i}", i / 12, 256, "mean") for i in range(13)]
    N = 400
    vectors = [np.random.default_rng(i).normal(size=(N, 256)).astype(np.float32) for i in range(13)]
    file = write_part(store, SET.directory, [f"{i:04d}" for i in range(N)], [0] * N, vectors, layers, "float32")
    read = []

    class Counting:
        def __init__(self, fs: Any) -> None:
            self._fs = fs

        def open_input_file(self, path: Any) -> Any:
            opened = self._fs.open_input_file(path)

            class File:
                def __getattr__(self, name: Any) -> Any:
                    # Hidden, so that Arrow calls `read`.
                    if name in {"read_buffer", "readinto"}:
                        raise AttributeError(name)
                    return getattr(opened, name)

                closed = False

                def read(self, *a: Any) -> Any:
                    content = opened.read(*a)
                    read.append(len(content))
                    return content

                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *a: Any) -> None:
                    opened.close()

            return File()

    counted = Storage(store.uri)
    counted.fs = Counting(store.fs)
    _, _, X = read_layer(counted, SET, manifest([file]), 7)
    np.testing.assert_array_equal(X, vectors[7])
    assert vectors[7].nbytes < sum(read) < 1.3 * vectors[7].nbytes


def test_keys_do_not_depend_on_order() -> None:
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1) != key_of(a=1, b=[3])
