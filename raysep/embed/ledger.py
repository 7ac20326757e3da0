"""Ledger of an unfinished shard set: one small record per block, written after the block's rows.

A resumed run skips the blocks that have a record. The name of a record is the position of its block among the images,
so a block that is written twice has one record, and the file of the other attempt is a stray.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from raysep.embed.shards import ShardFile, ShardSet
from raysep.errors import StorageError
from raysep.models.layers import Layer
from raysep.storage.store import Storage

PREFIX = "_block-"


@dataclass(frozen=True)
class Record:
    """A written block of one shard set.

    Attributes:
        key: of the shard set, as in its manifest.
        first: position of its first image among those of the split.
        images: how many it had.
        file: its file; None where no image could be read.
        failed: image_id and reason of each image that could not be read.
        layers: of the model.
    """

    key: str
    first: int
    images: int
    file: ShardFile | None
    failed: dict[str, str]
    layers: list[Layer]


_RECORD = TypeAdapter(Record)


def write_record(store: Storage, directory: str, record: Record) -> None:
    """Write the record of a block, after its file."""
    store.write_json(f"{directory}/{PREFIX}{record.first:09d}.json", asdict(record))


def read_records(store: Storage, shard_set: ShardSet, key: str) -> dict[int, Record]:
    """Records of a shard set by first image: those of this key whose file is complete."""
    sizes = store.sizes(shard_set.directory)
    found = {}
    for path in _records(sizes):
        try:
            content = store.read_bytes(path)
            with store.understood(path):
                record = _RECORD.validate_json(content)
        except StorageError:
            # A block can always be embedded again.
            continue
        file = record.file
        whole = file is None or sizes.get(f"{shard_set.directory}/{file.name}") == file.bytes
        if record.key == key and whole:
            found[record.first] = record
    return found


def forget(store: Storage, shard_set: ShardSet) -> None:
    """Delete the records of a shard set that is complete, or starts over."""
    for path in _records(store.sizes(shard_set.directory)):
        store.delete(path)


def _records(files: Iterable[str]) -> list[str]:
    return [path for path in files if path.rpartition("/")[2].startswith(PREFIX)]
