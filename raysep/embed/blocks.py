"""A block of work: image references in, one Parquet file per checkpoint out. Plain classes; Ray Data calls them.

Where the model is on a GPU, decoding is a step of its own on CPUs and hands over uint8; else both are one step.
"""

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysep.config import EmbedConfig
from raysep.data.sources import Reader
from raysep.embed.attempts import Begin, first_time, note_begin
from raysep.embed.ledger import Record, keep, kept
from raysep.embed.shards import ShardSet
from raysep.models.layers import Layer
from raysep.models.meta import CheckpointMeta, directory, read_meta
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter, Report

if TYPE_CHECKING:
    from raysep.embed.embedder import Decoded

# The column that marks a block whose images are decoded already.
PIXELS = "pixels"


@dataclass(frozen=True)
class Unit:
    """Checkpoints of one model and the images of one split: what shares each decoded image.

    Attributes:
        keys: of the shard sets, as their manifests will have them.
    """

    metas: Sequence[CheckpointMeta]
    shard_sets: Sequence[ShardSet]
    keys: Sequence[str]
    rows: pa.Table
    reader: Reader


@dataclass(frozen=True)
class Block:
    """What became of one block of work.

    Attributes:
        unit: position among the units.
        first: position of its first image among the unit's.
        images: how many it had.
        files: for each shard set of the unit, what its manifest will say of the file.
        failed: image_id and reason of each image that could not be read.
        layers: of the model.
        uncompiled: blocks of the model that were to be compiled, and can't be.
        reports: of the workers that it passed through.
    """

    unit: int
    first: int
    images: int
    files: list[dict[str, Any]]
    failed: dict[str, str]
    layers: list[Layer]
    uncompiled: list[str]
    reports: list[Report]

    def to_json(self) -> str:
        """As `block_from_json` reads it."""
        return json.dumps(asdict(self))


def block_from_json(text: str) -> Block:
    """The block that `Block.to_json` wrote."""
    plain = json.loads(text)
    layers = [Layer(**layer) for layer in plain["layers"]]
    return Block(**{**plain, "layers": layers, "reports": [Report(**report) for report in plain["reports"]]})


def references(number: int, unit: Unit, reader: int, rows: int, done: Container[int] = ()) -> Iterator[pa.Table]:
    """A unit's image references in blocks, each with all that a worker has to know of the unit.

    Args:
        number: of the unit.
        reader: number of the unit's reader.
        rows: of a block.
        done: first images of the blocks that are left out.
    """
    work = {
        "unit": number,
        "reader": reader,
        "checkpoints": [directory(meta.model.id, meta.trial, meta.step) for meta in unit.metas],
        "directories": [shard_set.directory for shard_set in unit.shard_sets],
        "keys": list(unit.keys),
    }
    columns = unit.rows.select(["image_id", "path", "row", "label"])
    for first in range(0, columns.num_rows, rows):
        if first in done:
            continue
        block = columns.slice(first, rows)
        own = json.dumps({**work, "first": first})
        yield block.append_column(
            "work", pa.DictionaryArray.from_arrays(pa.array([0] * block.num_rows, pa.int32()), [own])
        )


def already(store: Storage, number: int, unit: Unit, rows: int) -> list[Block]:
    """The blocks of a unit that an earlier call has written for all of its checkpoints."""
    records = [kept(store, shard_set, key) for shard_set, key in zip(unit.shard_sets, unit.keys, strict=True)]
    found = []
    for first in range(0, unit.rows.num_rows, rows):
        own = [of[first] for of in records if first in of]
        if len(own) == len(records) and own[0].images == min(rows, unit.rows.num_rows - first):
            files = [record.file for record in own if record.file is not None]
            found.append(Block(number, first, own[0].images, files, own[0].failed, own[0].layers, [], []))
    return found


class Decoding:
    """Reads and decodes blocks of references into blocks of pixels: one row, which holds all of them."""

    def __init__(
        self, readers: Sequence[Reader], store: Storage, batch_size: int, meter: Meter, begin: Begin = first_time
    ) -> None:
        self._readers, self._store, self._batch_size, self._meter = readers, store, batch_size, meter
        self._begin = begin
        self._cached: tuple[str, CheckpointMeta] | None = None

    def batches(self, work: dict[str, Any], block: pa.Table) -> Iterator["Decoded"]:
        """The images of a block, decoded `batch_size` at a time."""
        from raysep.embed.embedder import Decoded, load_all

        where = work["checkpoints"][0]
        if self._cached is None or self._cached[0] != where:
            self._cached = where, read_meta(self._store, where)
        places = list(zip(block["path"].to_pylist(), block["row"].to_pylist(), strict=True))
        reader = Counted(self._readers[work["reader"]], self._meter)
        found: Iterator[Decoded] = load_all(reader, places, self._cached[1].preprocessing, self._batch_size)
        return found

    def __call__(self, block: pa.Table) -> pa.Table:
        """A block of references to a block of pixels."""
        with self._meter.piece():
            work = json.loads(block["work"][0].as_py())
            note_begin("decode", work, block["image_id"][0].as_py(), self._begin, self._meter)
            decoded = list(self.batches(work, block))
            pixels = np.concatenate([batch.pixels.numpy() for batch in decoded])
        head = {
            "work": work,
            "ids": block["image_id"].to_pylist(),
            "labels": block["label"].to_pylist(),
            "good": [position for batch in decoded for position in batch.good],
            "failed": [item for batch in decoded for item in batch.failed.items()],
            "shape": pixels.shape,
            "report": self._meter.report.plain(),
        }
        offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
        # One value that is the array's own memory: no copy.
        content = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels)])
        return pa.table({"head": [json.dumps(head)], PIXELS: content})


class Embedding:
    """Embeds and writes blocks of references or of pixels. Keeps the models of the last one."""

    def __init__(
        self,
        readers: Sequence[Reader],
        store: Storage,
        config: EmbedConfig,
        device: str,
        meter: Meter,
        begin: Begin = first_time,
    ) -> None:
        self._store, self._config, self._device, self._meter, self._begin = store, config, device, meter, begin
        self._decoding = Decoding(readers, store, config.batch_size, meter)
        self._loaded: list[str] = []

    def __call__(self, block: pa.Table) -> pa.Table:
        """One block to one row that says what became of it."""
        reports = []
        with self._meter.piece():
            if PIXELS in block.column_names:
                head = json.loads(block["head"][0].as_py())
                work, ids, labels = head["work"], head["ids"], head["labels"]
                batches = self._unpacked(head, block)
                reports.append(Report(**head["report"]))
            else:
                work = json.loads(block["work"][0].as_py())
                ids, labels = block["image_id"].to_pylist(), block["label"].to_pylist()
                batches = self._decoding.batches(work, block)
            note_begin("embed", work, ids[0], self._begin, self._meter)
            outcome = self._outcome(work, ids, labels, batches)
        found = Block(**outcome, reports=[*reports, self._meter.report])
        return pa.table({"outcome": [found.to_json()]})

    def _unpacked(self, head: dict[str, Any], block: pa.Table) -> Iterator["Decoded"]:
        import torch

        from raysep.embed.embedder import Decoded

        # A copy: torch warns about memory of the object store, which can't be written to.
        flat = np.frombuffer(block[PIXELS][0].as_buffer(), np.uint8).copy()
        pixels = torch.from_numpy(flat).reshape(head["shape"])
        for first in range(0, len(pixels), self._config.batch_size):
            until = first + self._config.batch_size
            yield Decoded(pixels[first:until], head["good"][first:until], {})
        yield Decoded(pixels[:0], [], dict(head["failed"]))

    def _outcome(
        self, work: dict[str, Any], ids: list[str], labels: list[int], batches: Iterator["Decoded"]
    ) -> dict[str, Any]:
        from raysep.embed.embedder import Embedder
        from raysep.embed.shards import write_part

        if self._loaded != work["checkpoints"]:
            metas = [read_meta(self._store, where) for where in work["checkpoints"]]
            self._embedder = Embedder(self._store, metas, self._device, self._config.precision, self._config.compile)
            self._loaded = work["checkpoints"]
        embedded = self._embedder.embed(batches, self._meter)
        files = []
        if embedded.good:
            good_ids = [ids[position] for position in embedded.good]
            good_labels = [labels[position] for position in embedded.good]
            layers = self._embedder.layers
            files = [
                write_part(self._store, where, good_ids, good_labels, vectors, self._embedder.layers, self._config.dtype)
                    self._store, where, good_ids, good_labels, vectors, self._embedder.layers, self._config.dtype
                )
                for where, vectors in zip(work["directories"], embedded.vectors, strict=True)
            ]
        self._meter.count("bytes_written", sum(file["bytes"] for file in files))
        failed = {ids[position]: reason for position, reason in embedded.failed.items()}
        for position, (where, key) in enumerate(zip(work["directories"], work["keys"], strict=True)):
            file = files[position] if files else None
            keep(self._store, where, Record(key, work["first"], len(ids), file, failed, self._embedder.layers))
        return {
            "unit": work["unit"],
            "first": work["first"],
            "images": len(ids),
            "files": files,
            "failed": failed,
            "layers": self._embedder.layers,
            "uncompiled": self._embedder.uncompiled,
        }


class Counted:
    """A reader that counts what it reads."""

    def __init__(self, reader: Reader, meter: Meter) -> None:
        self._reader, self._meter = reader, meter

    def read(self, path: str | None, row: int | None) -> bytes:
        """The encoded image. Raises OSError."""
        content = self._reader.read(path, row)
        self._meter.count("bytes_read", len(content))
        return content
