"""Thousands of damaged inputs through the real readers: taken, failed or refused; no crash and no wrong count."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from raysep.data.images import Preprocessing, UnreadableImageError, decode, load_batch
from raysep.data.sources.parquet import ParquetImages
from raysep.embedding.shards import ShardSet, read_manifest
from raysep.errors import ConfigError, StorageError
from raysep.finetune import resume
from raysep.models.weights import load_weights
from raysep.storage.store import Storage
from tests.data.test_decoding import GREYS
from tests.finetune.test_training import trial

SMALL = Preprocessing((8, 8), 3, "bilinear", (0.5,) * 3, (0.5,) * 3, 1.0, "center")


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut out, doubled, replaced, or the end missing."""
    found = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, size = int(rng.integers(0, max(1, len(found)))), int(rng.integers(1, 16))
        kind = rng.integers(0, 5)
        if kind == 0 and found:
            found[at % len(found)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del found[at : at + size]
        elif kind == 2:
            found[at:at] = found[at : at + size]
        elif kind == 3:
            found[at : at + size] = rng.bytes(size)
        else:
            del found[at + int(rng.integers(0, 64)) :]
    return bytes(found)


class InMemory:
    def __init__(self, contents: list[bytes]) -> None:
        self.contents = contents

    def read(self, path: str | None, row: int | None) -> bytes:
        assert row is not None
        return self.contents[row]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000"])
def test_300_damaged_images_of_each_kind_are_decoded_or_failed(kind: str) -> None:
    rng = np.random.default_rng(0)
    plain = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(plain, kind)
    contents = [mutated(plain.getvalue(), rng) for _ in range(300)]
    pixels, good, failed = load_batch(InMemory(contents), [(None, row) for row in range(300)], SMALL)
    assert sorted([*good, *failed]) == list(range(300))
    assert pixels.shape == (len(good), 3, 8, 8)
    assert all(failed.values())
    # What is said of an image is the same each time: it is stored with the results.
    assert load_batch(InMemory(contents), [(None, row) for row in range(300)], SMALL)[2] == failed


@pytest.mark.parametrize(
    "kind", ["16 bits", "12 bits by sBIT, not spread", "32 bits", "floats to 1", "12 bits by maxval"]
)
@pytest.mark.parametrize("bit_depth", [None, 12])
def test_300_damaged_images_of_many_bits_are_decoded_or_unreadable(kind: str, bit_depth: int | None) -> None:
    rng = np.random.default_rng(1)
    contents = [mutated(GREYS[kind][0], rng) for _ in range(300)]
    failed = 0
    for content in contents:
        try:
            assert decode(content, bit_depth=bit_depth).mode == "RGB"
        except UnreadableImageError as error:
            failed += 1
            assert str(error)
    # Values of more bits than are given are unreadable, damaged or not.
    assert 0 < failed < 300 or (bit_depth == 12 and not kind.startswith("12"))


def test_500_damaged_parquet_files_are_read_failed_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    plain = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(plain, "PNG")
    table = pa.table({"image": [plain.getvalue()] * 8, "label": list("aabbccdd")})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=3)
    path = tmp_path / "x.parquet"
    refused = read = 0
    for _ in range(500):
        path.write_bytes(mutated(sink.getvalue(), rng))
        source = ParquetImages(ParquetImages.Config(path=str(path)))
        try:
            records = source.records()
        except ConfigError as error:
            assert error.problems
            refused += 1
            continue
        read += 1
        _, good, failed = load_batch(source, [(record.path, record.row) for record in records], SMALL)
        assert len(good) + len(failed) == len(records) <= 8
    assert refused > 50
    assert read > 50


def test_500_damaged_checkpoints_are_loaded_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    model = torch.nn.Linear(3, 2)
    content = save({key: value.contiguous() for key, value in model.state_dict().items()})
    pickled = io.BytesIO()
    torch.save(model.state_dict(), pickled)
    refused = 0
    for number in range(500):
        name, plain = ("w.safetensors", content) if number % 2 else ("w.pth", pickled.getvalue())
        (tmp_path / name).write_bytes(mutated(plain, rng))
        try:
            load_weights(model, str(tmp_path / name), "test_vit")
        except ConfigError:
            refused += 1
        assert all(value.isfinite().all() for value in model.state_dict().values())
    assert refused > 100


def test_damaged_manifests_and_states_are_nothing_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    run, shard_set = Storage(str(tmp_path)), ShardSet("m", 0, 0, "unseen")
    plain = (
        b'{"key": "k", "rows": 0, "files": [], "layers": [], "failed": {}, "dtype": "float32", '
        b'"checkpoint_sha256": "s", "versions": {}}'
    )
    kept = io.BytesIO()
    torch.save({"progress": {"step": 3}, "random": {}, "parts": {"model": {"w": torch.ones(3)}}}, kept)
    for _ in range(300):
        run.write_bytes(f"{shard_set.directory}/_manifest.json", mutated(plain, rng))
        with contextlib.suppress(StorageError):
            read_manifest(run, shard_set)
        run.write_bytes(f"{trial().directory}/{resume.FILE}", mutated(kept.getvalue(), rng))
        found = resume.load(run, trial())
        assert found is None or isinstance(found, dict)
