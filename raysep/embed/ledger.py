"""What is done of a shard set that is not whole yet: a small file for each block, written after the block's rows.

A call that is stopped is gone on from them: what they name is not embedded again. A record's name is the block's place
among the images, so a block that is done twice has one record, and the rows of the other time are a stray.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from raysep.embed.shards import ShardSet
from raysep.errors import StorageError
from raysep.models.layers import Layer
from raysep.storage.store import Storage

PREFIX = "_block-"


@dataclass(frozen=True)
class Record:
    """A block of one shard set that is written.

    Attributes:
        key: of the shard set, as in its manifest.
        first: position of its first image among those of the split.
        images: how many it had.
        file: what the manifest will say of its file; None where no image could be read.
        failed: image_id and reason of each image that could not be read.
        layers: of the model.
    """

    key: str
    first: int
    images: int
    file: dict[str, Any] | None
    failed: dict[str, str]
    layers: list[Layer]


def keep(store: Storage, directory: str, record: Record) -> None:
    """Write the record of a block whose file is written."""
    store.write_json(f"{directory}/{PREFIX}{record.first:09d}.json", asdict(record))


def kept(store: Storage, shard_set: ShardSet, key: str) -> dict[int, Record]:
    """The records of a shard set by their first image: those of this key whose file is there whole."""
    sizes = store.sizes(shard_set.directory)
    found = {}
    for path in _records(sizes):
        try:
            plain = store.read_json(path)
            with store.understood(path):
                record = Record(**{**plain, "layers": [Layer(**layer) for layer in plain["layers"]]})
        except StorageError:
            # A block can always be embedded again.
            continue
        file = record.file
        whole = file is None or sizes.get(f"{shard_set.directory}/{file['name']}") == file["bytes"]
        if record.key == key and whole:
            found[record.first] = record
    return found


def forget(store: Storage, shard_set: ShardSet) -> None:
    """Remove the records of a shard set: it is whole, or begins anew."""
    for path in _records(store.sizes(shard_set.directory)):
        store.delete(path)


def _records(files: Iterable[str]) -> list[str]:
    return [path for path in files if path.rpartition("/")[2].startswith(PREFIX)]
