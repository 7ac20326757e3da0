"""scores.parquet: long form, one row a score. The table is the only record of what has been scored."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysep.embed.shards import Manifest, ShardSet
from raysep.models.layers import Layer
from raysep.separability.names import Metric, Protocol, Score
from raysep.storage import Storage

FILE = "scores.parquet"
SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("trial", pa.int32()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("split", pa.string()),
        ("layer", pa.int32()),
        ("layer_name", pa.string()),
        ("depth", pa.float64()),
        ("dim", pa.int32()),
        ("pooling", pa.string()),
        ("protocol", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("n", pa.int64()),
        ("k", pa.int64()),
        ("backend", pa.string()),
        ("seconds", pa.float64()),
        ("key", pa.string()),
    ]
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One layer of one shard set, and the scores that are missing of it.

    Attributes:
        seed: of the trial that the checkpoint is from.
        key: hash of the embeddings and of how they are scored; rows with another key don't count.
    """

    shard_set: ShardSet
    manifest: Manifest
    layer: Layer
    seed: int
    key: str
    wanted: Sequence[tuple[Protocol, Metric]]

    def rows(self, scores: Iterable[Score]) -> list[Row]:
        """The table's rows of the scores. Intervals are unknown here: None."""
        place = {
            "model": self.shard_set.model_id,
            "trial": self.shard_set.trial,
            "seed": self.seed,
            "step": self.shard_set.step,
            "split": self.shard_set.split,
            "layer": self.layer.index,
            "layer_name": self.layer.name,
            "depth": self.layer.depth,
            "dim": self.layer.dim,
            "pooling": self.layer.pooling,
            "ci_low": None,
            "ci_high": None,
            "key": self.key,
        }
        return [{**place, **asdict(score)} for score in scores]


def read(run: Storage) -> list[Row]:
    """All rows, or none where there is no table yet."""
    try:
        content = run.read_bytes(FILE)
    except FileNotFoundError:
        return []
    rows: list[Row] = pq.read_table(io.BytesIO(content), schema=SCHEMA).to_pylist()
    return rows


def write(run: Storage, rows: Sequence[Row]) -> None:
    """Replace the table, atomically, sorted by everything that names a score."""
    names = ("model", "trial", "step", "split", "layer", "protocol", "metric")
    ordered = sorted(rows, key=lambda row: tuple(row[name] for name in names))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ordered, schema=SCHEMA), sink, compression="zstd")
    run.write_bytes(FILE, sink.getvalue())


def missing(tasks: Iterable[Task], rows: Iterable[Row]) -> list[Task]:
    """The tasks with what the rows don't have yet; tasks with nothing to do are left out."""
    done = {_name(row) for row in rows}
    left = []
    for task in tasks:
        wanted = [
            (protocol, metric) for protocol, metric in task.wanted if (*_place(task), protocol, metric) not in done
        ]
        if wanted:
            left.append(Task(task.shard_set, task.manifest, task.layer, task.seed, task.key, wanted))
    return left


def belonging(tasks: Iterable[Task], rows: Iterable[Row]) -> list[Row]:
    """The rows that the tasks stand for: rows of other embeddings or settings are not carried along."""
    names = {(*_place(task), protocol, metric) for task in tasks for protocol, metric in task.wanted}
    return [row for row in rows if _name(row) in names]


def _place(task: Task) -> tuple[Any, ...]:
    s = task.shard_set
    return s.model_id, s.trial, s.step, s.split, task.layer.index, task.key


def _name(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "trial", "step", "split", "layer", "key", "protocol", "metric"))
