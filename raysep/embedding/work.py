"""The work of the embedding stage: groups of images and checkpoints, cut into blocks, and the result of each block.

Blocks are sent as Arrow tables; one column holds, as JSON, what a worker needs besides the image references.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from pydantic import TypeAdapter

from raysep.data.source import Reader
from raysep.embedding.ledger import read_records
from raysep.embedding.shards import ShardFile, ShardSet
from raysep.models.layers import Layer
from raysep.models.meta import CheckpointMeta, directory
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Report

# Columns: the work of a reference block; header and pixels of a decoded block; the result of an embedded block.
WORK, HEADER, PIXELS, RESULT = "work", "header", "pixels", "result"


@dataclass(frozen=True)
class WorkGroup:
    """Checkpoints of one model and the images of one split: the work in which each image is decoded once.

    Attributes:
        shard_sets, keys: shard set and its cache key, per checkpoint.
        rows: table of the images; its paths and rows are what the reader reads.
    """

    metas: Sequence[CheckpointMeta]
    shard_sets: Sequence[ShardSet]
    keys: Sequence[str]
    rows: pa.Table
    reader: Reader


@dataclass(frozen=True)
class BlockWork:
    """Parameters of a block, sent to the worker with its image references.

    Attributes:
        group: index of the work group.
        reader: index of the group's reader.
        first: position of the block's first image in the group.
        checkpoints, directories, keys: checkpoint directory, shard directory and cache key, per shard set.
    """

    group: int
    reader: int
    first: int
    checkpoints: list[str]
    directories: list[str]
    keys: list[str]


@dataclass(frozen=True)
class DecodedHeader:
    """Metadata of a decoded block.

    Attributes:
        ids, labels: (n,) image ids and labels, including unreadable images.
        good: positions of the readable images, in the order of the pixels.
        failed: reason for each unreadable image, by position.
        shape: shape of the pixels, (len(good), C, H, W).
    """

    work: BlockWork
    ids: list[str]
    labels: list[int]
    good: list[int]
    failed: dict[int, str]
    shape: tuple[int, ...]
    report: Report


@dataclass(frozen=True)
class BlockResult:
    """The result of an embedded block.

    Attributes:
        group: index of the work group.
        first: position of the block's first image in the group.
        images: number of images, including unreadable ones.
        files: shard file per shard set of the group; empty where all images are unreadable.
        failed: reason for each unreadable image, by image_id.
        layers: layers of the model.
        uncompiled: blocks of the model that are not compiled, as hooks read layers inside them.
        reports: worker reports, decoding first.
    """

    group: int
    first: int
    images: int
    files: list[ShardFile]
    failed: dict[str, str]
    layers: list[Layer]
    uncompiled: list[str]
    reports: list[Report]


WORK_JSON, HEADER_JSON, RESULT_JSON = TypeAdapter(BlockWork), TypeAdapter(DecodedHeader), TypeAdapter(BlockResult)


def parse_result(text: str) -> BlockResult:
    """Parse the JSON from the column `RESULT` of an embedded block."""
    return RESULT_JSON.validate_json(text)


def references(index: int, group: WorkGroup, reader: int, rows: int, done: Container[int] = ()) -> Iterator[pa.Table]:
    """Split the image references of a group into blocks.

    Args:
        index: index of the group.
        reader: index of the group's reader.
        rows: block size, in images.
        done: positions of the first images of finished blocks, which are skipped.
    """
    checkpoints = [directory(meta.model.id, meta.trial, meta.step) for meta in group.metas]
    work = BlockWork(index, reader, 0, checkpoints, [each.directory for each in group.shard_sets], list(group.keys))
    columns = group.rows.select(["image_id", "path", "row", "label"])
    for first in range(0, columns.num_rows, rows):
        if first in done:
            continue
        block = columns.slice(first, rows)
        text = WORK_JSON.dump_json(replace(work, first=first)).decode()
        yield block.append_column(
            WORK, pa.DictionaryArray.from_arrays(pa.array([0] * block.num_rows, pa.int32()), [text])
        )


def finished_blocks(store: Storage, index: int, group: WorkGroup, rows: int) -> list[BlockResult]:
    """Results of the finished blocks of a group: those that the ledger of every checkpoint of the group records.

    Args:
        index: position of the group in the list of groups.
        rows: images per block.
    """
    ledgers = [read_records(store, *each) for each in zip(group.shard_sets, group.keys, strict=True)]
    results = []
    for first in range(0, group.rows.num_rows, rows):
        records = [ledger[first] for ledger in ledgers if first in ledger]
        if len(records) == len(ledgers) and records[0].images == min(rows, group.rows.num_rows - first):
            files = [record.file for record in records if record.file is not None]
            failed, layers = records[0].failed, records[0].layers
            results.append(BlockResult(index, first, records[0].images, files, failed, layers, [], []))
    return results


def work_of(block: pa.Table) -> BlockWork:
    """Parse the work of a block of references, from its column `WORK`."""
    return WORK_JSON.validate_json(block[WORK][0].as_py())
