"""scores.parquet: long form, one row a score. The table is the only record of what has been scored."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysep.config.names import Wanted
from raysep.embed.shards import Manifest, ShardSet
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
        # The score on both halves of each split, a and b in turn: what compares layers is made from them.
        ("halves", pa.list_(pa.float32())),
    ]
)
Row = dict[str, Any]
# What a score is known by.
NAMES = ("model", "trial", "step", "split", "layer", "key", "protocol", "metric")


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
    wanted: Sequence[Wanted]

    @property
    def place(self) -> dict[str, Any]:
        """What names the layer, in the table and in the log."""
        return {
            "model": self.shard_set.model_id,
            "trial": self.shard_set.trial,
            "step": self.shard_set.step,
            "split": self.shard_set.split,
            "layer": self.layer.index,
        }

    def rows(self, scores: Iterable["Score"]) -> list[Row]:
        """The table's rows of the scores."""
        place = {
            **self.place,
            "seed": self.seed,
            "layer_name": self.layer.name,
            "depth": self.layer.depth,
            "dim": self.layer.dim,
            "pooling": self.layer.pooling,
            "key": self.key,
        }
        return [{**place, **_numbers(score)} for score in scores]


def _numbers(score: "Score") -> Row:
    found = score.measured
    low, high = found.interval or (None, None)
    return {
        "protocol": score.protocol,
        "metric": score.metric,
        "value": found.value,
        "ci_low": low,
        "ci_high": high,
        "se": found.se,
        "starts_sd": found.starts_sd,
        "shuffled": found.shuffled,
        "n": score.n,
        "k": found.k,
        "backend": score.backend,
        "seconds": score.seconds,
        "halves": None if found.halves is None else found.halves.astype("float32").ravel().tolist(),
    }


def read(store: Storage, *, names_only: bool = False) -> list[Row]:
    """All rows, or none where there is no table yet.

    Args:
        names_only: only the columns that name a score, which tell what is there in a fraction of the time.
    """
    try:
        content = store.read_bytes(FILE)
    except FileNotFoundError:
        return []
    columns = list(NAMES) if names_only else None
    with store.understood(FILE):
        # Threads of Arrow's that are still starting when a finished run exits at once would abort the process.
        table = pq.read_table(io.BytesIO(content), schema=SCHEMA, columns=columns, use_threads=False, pre_buffer=False)
        rows: list[Row] = table.to_pylist()
    return rows


def write(store: Storage, rows: Sequence[Row]) -> None:
    """Replace the table, atomically, sorted by everything that names a score."""
    names = ("model", "trial", "step", "split", "layer", "protocol", "metric")
    ordered = sorted(rows, key=lambda row: tuple(row[name] for name in names))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ordered, schema=SCHEMA), sink, compression="zstd")
    store.write_bytes(FILE, sink.getvalue())


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
    return tuple(row[name] for name in NAMES)
