"""The score table `scores.parquet`: one row per score. It is the only record of finished scores."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysep.config.names import Wanted
from raysep.embedding.shards import Manifest, ShardSet
from raysep.models.layers import Layer
from raysep.storage.store import Storage

if TYPE_CHECKING:
    from raysep.scoring.scoring import Score

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
        # The last layer, if the head only pools it.
        ("same_as", pa.string()),
        ("protocol", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("se", pa.float64()),
        ("starts_sd", pa.float64()),
        ("shuffled", pa.float64()),
        ("n", pa.int64()),
        ("k", pa.int64()),
        ("backend", pa.string()),
        ("seconds", pa.float64()),
        ("key", pa.string()),
        # The score on both halves of each split, interleaved (a, b, a, b, ...), for the comparison of layers.
        ("halves", pa.list_(pa.float32())),
    ]
)
Row = dict[str, Any]
# The columns that identify a score.
NAMES = ("model", "trial", "step", "split", "layer", "key", "protocol", "metric")


@dataclass(frozen=True)
class Task:
    """One layer of one shard set, and the scores to compute.

    Attributes:
        seed: seed of the checkpoint's trial.
        key: hash of the embeddings and the scoring configuration; rows with another key are outdated.
        wanted: (protocol, metric) of each score.
    """

    shard_set: ShardSet
    manifest: Manifest
    layer: Layer
    seed: int
    key: str
    wanted: Sequence[Wanted]

    @property
    def coordinates(self) -> dict[str, Any]:
        """The columns that identify the layer, in the table and in the log."""
        return {
            "model": self.shard_set.model_id,
            "trial": self.shard_set.trial,
            "step": self.shard_set.step,
            "split": self.shard_set.split,
            "layer": self.layer.index,
        }

    def rows(self, scores: Iterable["Score"]) -> list[Row]:
        """Convert scores to rows of the table."""
        shared = {
            **self.coordinates,
            "seed": self.seed,
            "layer_name": self.layer.name,
            "depth": self.layer.depth,
            "dim": self.layer.dim,
            "pooling": self.layer.pooling,
            "same_as": self.layer.same_as,
            "key": self.key,
        }
        return [{**shared, **_numbers(score)} for score in scores]


def _numbers(score: "Score") -> Row:
    measured = score.measured
    low, high = measured.interval or (None, None)
    return {
        "protocol": score.protocol,
        "metric": score.metric,
        "value": measured.value,
        "ci_low": low,
        "ci_high": high,
        "se": measured.se,
        "starts_sd": measured.starts_sd,
        "shuffled": measured.shuffled,
        "n": score.n,
        "k": measured.k,
        "backend": score.backend,
        "seconds": score.seconds,
        "halves": None if measured.halves is None else measured.halves.astype("float32").ravel().tolist(),
    }


def read(store: Storage, *, names_only: bool = False) -> list[Row]:
    """Read all rows; none where the table doesn't exist yet.

    Args:
        names_only: read only the columns in `NAMES`, which is much faster.
    """
    try:
        content = store.read_bytes(FILE)
    except FileNotFoundError:
        return []
    columns = list(NAMES) if names_only else None
    with store.understood(FILE):
        # Without threads: those still starting when a finished run exits would abort the process.
        table = pq.read_table(io.BytesIO(content), schema=SCHEMA, columns=columns, use_threads=False, pre_buffer=False)
        rows: list[Row] = table.to_pylist()
    return rows


def write(store: Storage, rows: Sequence[Row]) -> None:
    """Replace the table atomically; sort its rows by the `NAMES` columns except the key."""
    names = ("model", "trial", "step", "split", "layer", "protocol", "metric")
    ordered = sorted(rows, key=lambda row: tuple(row[name] for name in names))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ordered, schema=SCHEMA), sink, compression="zstd")
    store.write_bytes(FILE, sink.getvalue())


def missing(tasks: Iterable[Task], rows: Iterable[Row]) -> list[Task]:
    """Reduce tasks to the scores that the rows lack; finished tasks are dropped."""
    done = {_name(row) for row in rows}
    remaining = []
    for task in tasks:
        wanted = [
            (protocol, metric) for protocol, metric in task.wanted if (*_layer_key(task), protocol, metric) not in done
        ]
        if wanted:
            remaining.append(Task(task.shard_set, task.manifest, task.layer, task.seed, task.key, wanted))
    return remaining


def belonging(tasks: Iterable[Task], rows: Iterable[Row]) -> list[Row]:
    """The rows that match a wanted score of a task, without those of outdated embeddings and settings."""
    names = {(*_layer_key(task), protocol, metric) for task in tasks for protocol, metric in task.wanted}
    return [row for row in rows if _name(row) in names]


def _layer_key(task: Task) -> tuple[Any, ...]:
    s = task.shard_set
    return s.model_id, s.trial, s.step, s.split, task.layer.index, task.key


def _name(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in NAMES)
