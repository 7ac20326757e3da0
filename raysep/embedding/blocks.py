"""Embeds each block of image references into one Parquet file per checkpoint. Plain classes, which Ray Data calls.

For GPUs, decoding is a separate step on CPUs that outputs uint8 pixels; on CPUs, one step decodes and embeds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raysep.config import EmbedConfig
from raysep.data.source import Reader
from raysep.embedding.ledger import Record, write_record
from raysep.embedding.work import (
    HEADER,
    HEADER_JSON,
    PIXELS,
    RESULT,
    RESULT_JSON,
    BlockResult,
    BlockWork,
    DecodedHeader,
    work_of,
)
from raysep.errors import StageError
from raysep.models.meta import CheckpointMeta, read_meta
from raysep.storage.retries import WORKER_RETRIES
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter

if TYPE_CHECKING:
    from raysep.embedding.embedder import Decoded

# Counts attempts at a named step of a block: name -> number of this attempt, starting at 1.
CountAttempt = Callable[[str], int]


def first_attempt(step: str) -> int:  # noqa: ARG001
    """Return attempt 1: a single process can't lose a worker."""
    return 1


def check_attempts(step: str, work: BlockWork, first_id: str, count: CountAttempt, meter: Meter) -> None:
    """Count an attempt at a step of a block, and abort if too many workers were lost on the block.

    Args:
        step: `decode` or `embed`.
        first_id: image_id of the block's first image.
        meter: records the earlier attempts as retries.

    Raises:
        StageError: too many lost workers; the message names the block and likely causes.
    """
    lost = count(f"{step} {work.group} {work.first}") - 1
    if lost > WORKER_RETRIES:
        raise StageError(
            f"{lost} workers were lost on the block of {work.directories[0]} starting at image {work.first} "
            f"({first_id}): possible causes are too little memory (reduce embed.batch_size, embed.shard_rows or the "
            "actors in section compute) and an image that crashes the decoder"
        )
    meter.again("process", lost)


class Decoding:
    """Decodes a block of references into a single-row block of pixels."""

    def __init__(
        self,
        readers: Sequence[Reader],
        store: Storage,
        batch_size: int,
        meter: Meter,
        count: CountAttempt = first_attempt,
    ) -> None:
        self._readers, self._store, self._batch_size, self._meter = readers, store, batch_size, meter
        self._count = count
        self._cached: tuple[str, CheckpointMeta] | None = None

    def batches(self, work: BlockWork, block: pa.Table) -> Iterator["Decoded"]:
        """Decode the images of a block, `batch_size` at a time."""
        from raysep.embedding.embedder import load_all

        checkpoint = work.checkpoints[0]
        if self._cached is None or self._cached[0] != checkpoint:
            self._cached = checkpoint, read_meta(self._store, checkpoint)
        paths = list(zip(block["path"].to_pylist(), block["row"].to_pylist(), strict=True))
        reader = CountingReader(self._readers[work.reader], self._meter)
        return load_all(reader, paths, self._cached[1].preprocessing, self._batch_size)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Decode a block of references into a block of pixels."""
        with self._meter.piece():
            work, ids = work_of(block), block["image_id"].to_pylist()
            check_attempts("decode", work, ids[0], self._count, self._meter)
            decoded = list(self.batches(work, block))
            pixels = np.concatenate([batch.pixels.numpy() for batch in decoded])
        header = DecodedHeader(
            work,
            ids,
            block["label"].to_pylist(),
            [position for batch in decoded for position in batch.good],
            {position: reason for batch in decoded for position, reason in batch.failed.items()},
            pixels.shape,
            self._meter.report,
        )
        offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
        # Wraps the memory of the array without a copy.
        content = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels)])
        return pa.table({HEADER: [HEADER_JSON.dump_json(header).decode()], PIXELS: content})


class Embedding:
    """Embeds and writes blocks of references or of pixels. Caches the models of the last block."""

    def __init__(
        self,
        readers: Sequence[Reader],
        store: Storage,
        config: EmbedConfig,
        device: str,
        meter: Meter,
        count: CountAttempt = first_attempt,
    ) -> None:
        self._store, self._config, self._device, self._meter, self._count = store, config, device, meter, count
        self._decoding = Decoding(readers, store, config.batch_size, meter)
        self._loaded: list[str] = []

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed a block; return one row with its `BlockResult`."""
        return pa.table({RESULT: [RESULT_JSON.dump_json(self.embed(block)).decode()]})

    def embed(self, block: pa.Table) -> BlockResult:
        """Embed the images of a block, and write its shard files and ledger records."""
        reports = []
        with self._meter.piece():
            if PIXELS in block.column_names:
                header = HEADER_JSON.validate_json(block[HEADER][0].as_py())
                work, ids, labels = header.work, header.ids, header.labels
                batches = self._unpack(header, block)
                reports.append(header.report)
            else:
                work, ids, labels = work_of(block), block["image_id"].to_pylist(), block["label"].to_pylist()
                batches = self._decoding.batches(work, block)
            check_attempts("embed", work, ids[0], self._count, self._meter)
            result = self._embed(work, ids, labels, batches)
        return replace(result, reports=[*reports, self._meter.report])

    def _unpack(self, header: DecodedHeader, block: pa.Table) -> Iterator["Decoded"]:
        import torch

        from raysep.embedding.embedder import Decoded

        # Copied, since torch warns about the read-only memory of the object store.
        flat = np.frombuffer(block[PIXELS][0].as_buffer(), np.uint8).copy()
        pixels = torch.from_numpy(flat).reshape(header.shape)
        for first in range(0, len(pixels), self._config.batch_size):
            until = first + self._config.batch_size
            yield Decoded(pixels[first:until], header.good[first:until], {})
        yield Decoded(pixels[:0], [], header.failed)

    def _embed(self, work: BlockWork, ids: list[str], labels: list[int], batches: Iterator["Decoded"]) -> BlockResult:
        from raysep.embedding.embedder import Embedder
        from raysep.embedding.shards import write_part

        if self._loaded != work.checkpoints:
            metas = [read_meta(self._store, checkpoint) for checkpoint in work.checkpoints]
            self._embedder = Embedder.of_checkpoints(
                self._store, metas, self._device, self._config.precision, self._config.compile
            )
            self._loaded = work.checkpoints
        embedded, layers = self._embedder.embed(batches, self._meter), self._embedder.layers
        files = []
        if embedded.good:
            good_ids = [ids[position] for position in embedded.good]
            good_labels = [labels[position] for position in embedded.good]
            files = [
                write_part(self._store, shard_directory, good_ids, good_labels, vectors, layers, self._config.dtype)
                for shard_directory, vectors in zip(work.directories, embedded.vectors, strict=True)
            ]
        self._meter.count("bytes_written", sum(file.bytes for file in files))
        failed = {ids[position]: reason for position, reason in embedded.failed.items()}
        for position, (shard_directory, key) in enumerate(zip(work.directories, work.keys, strict=True)):
            file = files[position] if files else None
            write_record(self._store, shard_directory, Record(key, work.first, len(ids), file, failed, layers))
        return BlockResult(
            work.group, work.first, len(ids), files, failed, layers, self._embedder.uncompiled, reports=[]
        )


class CountingReader:
    """A reader that counts, in a meter, the bytes that it reads."""

    def __init__(self, reader: Reader, meter: Meter) -> None:
        self._reader, self._meter = reader, meter

    def read(self, path: str | None, row: int | None) -> bytes:
        """Read the encoded image. Raises OSError."""
        content = self._reader.read(path, row)
        self._meter.count("bytes_read", len(content))
        return content
