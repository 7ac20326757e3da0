"""Ledger of an unfinished shard set: one small record per block, written after the block's shard file.

A resumed run skips blocks with a record. Records are named by the position of the block's first image, so that a block
written twice has one record, and the shard file that the record doesn't name is orphaned.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from raysep.embedding.shards import ShardFile, ShardSet
from raysep.errors import StorageError
from raysep.models.layers import Layer
from raysep.storage.store import Storage

PREFIX = "_block-"


@dataclass(frozen=True)
class Record:
    """A finished block of one shard set.

    Attributes:
        key: cache key of the shard set, as in its manifest.
        first: position of the block's first image in the split.
        images: number of images, including unreadable ones.
        file: the shard file; None where all images are unreadable.
        failed: reason for each unreadable image, by image_id.
        layers: layers of the model.
    """

    key: str
    first: int
    images: int
    file: ShardFile | None
    failed: dict[str, str]
    layers: list[Layer]


_RECORD = TypeAdapter(Record)


def write_record(store: Storage, directory: str, record: Record) -> None:
    """Write the record of a block; its shard file must be written before."""
    store.write_json(f"{directory}/{PREFIX}{record.first:09d}.json", asdict(record))


def read_records(store: Storage, shard_set: ShardSet, key: str) -> dict[int, Record]:
    """Read the records of a shard set that have this key and a complete file, by position of the first image."""
    sizes = store.sizes(shard_set.directory)
    records = {}
    for path in _records(sizes):
        try:
            content = store.read_bytes(path)
            with store.understood(path):
                record = _RECORD.validate_json(content)
        except StorageError:
            # An unreadable record costs only time: the block is embedded again.
            continue
        file = record.file
        complete = file is None or sizes.get(f"{shard_set.directory}/{file.name}") == file.bytes
        if record.key == key and complete:
            records[record.first] = record
    return records


def forget(store: Storage, shard_set: ShardSet) -> None:
    """Delete the records of a shard set, once it is complete or must restart."""
    for path in _records(store.sizes(shard_set.directory)):
        store.delete(path)


def _records(files: Iterable[str]) -> list[str]:
    return [path for path in files if path.rpartition("/")[2].startswith(PREFIX)]
