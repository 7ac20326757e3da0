"""The results table: a row for each cell of each round, in Parquet files partitioned by date.

A row is a file of its own, whose name says its sweep, round and cell: writing it again replaces it, so no cell of a
round is ever there twice, and rows of sweeps that end at the same time don't meet.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysep.storage import Storage

SCHEMA = pa.schema(
    [
        ("date", pa.string()),
        ("at", pa.timestamp("ms", tz="UTC")),
        ("sweep", pa.string()),
        ("round", pa.string()),
        ("cell", pa.string()),
        ("key", pa.string()),
        ("state", pa.string()),
        ("error", pa.string()),
        ("model", pa.string()),
        ("domain", pa.string()),
        ("seed", pa.int64()),
        ("protocol", pa.string()),
        ("override", pa.string()),
        ("metric", pa.string()),
        ("g", pa.float64()),
        ("g_low", pa.float64()),
        ("g_high", pa.float64()),
        ("corrected_g", pa.float64()),
        ("corrected_low", pa.float64()),
        ("corrected_high", pa.float64()),
        ("best_layer", pa.int32()),
        ("best_layer_name", pa.string()),
        ("last_layer", pa.int32()),
        ("tied_layers", pa.list_(pa.int32())),
        ("seen_accuracy", pa.float64()),
        ("seconds", pa.float64()),
        ("worker_seconds", pa.float64()),
        ("images", pa.int64()),
        ("raysep", pa.string()),
        ("git_revision", pa.string()),
        ("data_sha256", pa.string()),
        ("machines", pa.string()),
        ("run_dir", pa.string()),
    ]
)
Row = dict[str, Any]
DONE, FAILED = "done", "failed"


def put(results: Storage, row: Row) -> None:
    """Write a row, in place of what the same cell of the same round had before."""
    name = f"{row['sweep']}.{row['round']}.{row['cell']}.parquet"
    path = f"date={row['date']}/{name}"
    sink = io.BytesIO()
    # The date is in the path, as the partitioning has it.
    schema = pa.schema([field for field in SCHEMA if field.name != "date"])
    pq.write_table(pa.Table.from_pylist([{key: row.get(key) for key in schema.names}], schema=schema), sink)
    results.write_bytes(path, sink.getvalue())
    for older in results.files(name=name):
        if older != path:
            results.delete(older)


def rows(results: Storage) -> list[Row]:
    """Every row, oldest first."""
    found: list[Row] = []
    for file in results.files():
        date, _, name = file.rpartition("/")
        if name.endswith(".parquet") and date.startswith("date="):
            table = pq.read_table(io.BytesIO(results.read_bytes(file)), use_threads=False, partitioning=None)
            found += [{"date": date.removeprefix("date="), **row} for row in table.to_pylist()]
    return sorted(found, key=lambda row: row["at"])


def select(found: Iterable[Row], *, round: str | None = None, date: str | None = None) -> list[Row]:  # noqa: A002
    """The last row of each cell, of a round or of a day."""
    last: dict[str, Row] = {}
    for row in found:
        if (round is None or row["round"] == round) and (date is None or row["date"] == date):
            last[row["cell"]] = row
    return list(last.values())


def rounds(found: Sequence[Row], sweep: str) -> list[str]:
    """The rounds of a sweep, in the order of their last rows."""
    last = {row["round"]: row["at"] for row in found if row["sweep"] == sweep}
    return sorted(last, key=lambda label: last[label])
