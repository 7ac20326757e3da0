"""The results table: a row per cell of each round, in Parquet files partitioned by date.

Each row is a file, named after a hash of sweep, round and cell, as joined names could be ambiguous. Writing a row again
replaces it, so that each cell of a round has one row, and concurrent sweeps never write the same file. Several sweeps,
of several versions of raysep, may share a table.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysep.errors import printable
from raysep.storage.store import Storage

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
        ("headline_protocol", pa.string()),
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
# Hive partitioning: the date is in the path, not in the file.
FILE_SCHEMA = pa.schema([field for field in SCHEMA if field.name != "date"])
Row = dict[str, Any]
DONE, FAILED = "done", "failed"
# The key of a row.
IDENTITY = ("sweep", "round", "cell")
REQUIRED = (*IDENTITY, "state", "at")
# Damaged files are moved here. Readers of Parquet directories ignore names with a leading underscore.
QUARANTINE = "_damaged"
# Paths of row files. The names of owned files begin with up to 60 characters of the sweep's name.
FILE = re.compile(r"date=[^/]*/[^/]+\.parquet")
OWNED = re.compile(r"/(?P<sweep>[^/]+)-[0-9a-f]{24}\.parquet$")
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Table:
    """The content of a results table.

    Attributes:
        rows: oldest first; missing columns are None.
        damaged: reasons why files are unreadable, by path.
        foreign: Parquet files without the columns of a row.
    """

    rows: list[Row]
    damaged: dict[str, str]
    foreign: list[str]

    def remarks(self, results: Storage) -> list[str]:
        """One line for each ignored file."""
        lines = [f"{results.display(path)} is damaged and left out: {why}" for path, why in self.damaged.items()]
        lines += [f"{results.display(path)} is not a row of a sweep, and is left out" for path in self.foreign]
        return [printable(line) for line in lines]


def put(results: Storage, row: Row) -> None:
    """Write a row; replaces the row with the same sweep, round and cell."""
    name = file_name(row)
    path = f"date={row['date']}/{name}"
    sink = io.BytesIO()
    content = pa.Table.from_pylist([{key: row.get(key) for key in FILE_SCHEMA.names}], schema=FILE_SCHEMA)
    # Checksums detect flipped bits, which could change g.
    pq.write_table(content, sink, write_page_checksum=True)
    results.write_bytes(path, sink.getvalue())
    # Early versions joined the names, so that another row may have this file name.
    old_name = ".".join(row[key] for key in IDENTITY) + ".parquet"
    for other in results.files():
        may_match = FILE.fullmatch(other) and other.rpartition("/")[2] in {name, old_name}
        if may_match and other != path and _holds(results, other, row):
            results.delete(other)


def file_name(row: Row) -> str:
    """The name of a row's file: its sweep, for readability, and a hash of its key.

    >>> file_name({"sweep": "nightly", "round": "v1.2", "cell": "a"})
    'nightly-3f70ec1bce830cb9137988c4.parquet'
    """
    identity = json.dumps([row[key] for key in IDENTITY])
    return f"{_name_prefix(row['sweep'])}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.parquet"


def rows(results: Storage) -> list[Row]:
    """All readable rows, oldest first."""
    return read(results).rows


def read(results: Storage) -> Table:
    """Read the table. Raises OSError if the storage is unreachable."""
    all_rows: list[Row] = []
    damaged: dict[str, str] = {}
    foreign: list[str] = []
    seen: set[str] = set()
    while listed := [path for path in results.files() if FILE.fullmatch(path) and path not in seen]:
        replaced = False
        for path in listed:
            seen.add(path)
            try:
                of_file = _parse(results.read_bytes(path), path.partition("/")[0].removeprefix("date="))
            except FileNotFoundError:
                replaced = True
            except (ValueError, PermissionError) as error:
                damaged[path] = " ".join(str(error).split())[:200]
            else:
                if of_file is None:
                    foreign.append(path)
                else:
                    all_rows += of_file
        # List again only if a file vanished: its replacement has another path.
        if not replaced:
            break
    latest: dict[tuple[str, ...], Row] = {}
    # A writer that was killed while it replaced a row leaves both files: the later row counts.
    for row in sorted(all_rows, key=lambda row: row["at"]):
        key = tuple(row[name] for name in IDENTITY)
        latest.pop(key, None)
        latest[key] = row
    return Table(list(latest.values()), damaged, foreign)


def quarantine(results: Storage, damaged: Iterable[str], sweep: str) -> dict[str, str]:
    """Move damaged files to `QUARANTINE`. The caller holds the lease of the sweep.

    Files that bear another sweep's name stay: a round of that sweep may be writing them again.

    Returns:
        New paths of the moved files, by old path.
    """
    moved = {}
    for path in damaged:
        owner = OWNED.search(path)
        if owner is not None and owner["sweep"] != _name_prefix(sweep):
            continue
        # Files without write permission stay as well.
        with contextlib.suppress(OSError):
            content = results.read_bytes(path)
            if not _is_damaged(content):
                # Written again in the meantime, or unreadable only for a moment.
                continue
            target = f"{QUARANTINE}/{path}.{hashlib.sha256(content).hexdigest()[:12]}"
            results.write_bytes(target, content)
            results.delete(path)
            moved[path] = target
    return moved


def select(rows: Iterable[Row], *, round: str | None = None, date: str | None = None) -> list[Row]:  # noqa: A002
    """The last row of each cell of each sweep, among all rows or those of a round or a day."""
    last: dict[tuple[str, str], Row] = {}
    for row in rows:
        if (round is None or row["round"] == round) and (date is None or row["date"] == date):
            last[row["sweep"], row["cell"]] = row
    return list(last.values())


def rounds(rows: Sequence[Row], sweep: str) -> list[str]:
    """The labels of a sweep's rounds, in the order of their last rows."""
    last = {row["round"]: row["at"] for row in rows if row["sweep"] == sweep}
    return sorted(last, key=lambda label: last[label])


def _parse(content: bytes, date: str) -> list[Row] | None:
    """The rows of a file, cast to `FILE_SCHEMA`; None if required columns are missing. Raises ValueError if damaged."""
    try:
        table = pq.read_table(
            io.BytesIO(content), use_threads=False, partitioning=None, page_checksum_verification=True
        )
        if not set(REQUIRED) <= set(table.column_names):
            return None
        columns = {}
        for field in FILE_SCHEMA:
            if field.name in table.column_names:
                # Timestamps may be in another unit.
                safe = not pa.types.is_timestamp(field.type)
                columns[field.name] = table[field.name].cast(field.type, safe=safe)
            else:
                columns[field.name] = pa.nulls(table.num_rows, field.type)
        rows = pa.table(columns).to_pylist()
    except (pa.ArrowException, OSError, OverflowError) as error:
        # The content is in memory, so an OSError is no storage error.
        raise ValueError(str(error) or type(error).__name__) from None
    empty = [name for name in REQUIRED if any(row[name] is None for row in rows)]
    if empty or not rows:
        raise ValueError(f"no value in {', '.join(empty)}" if empty else "the file has no rows")
    return [{"date": date, **row} for row in rows]


def _is_damaged(content: bytes) -> bool:
    try:
        _parse(content, "")
    except ValueError:
        return True
    return False


def _name_prefix(sweep: str) -> str:
    """The sweep's part of a file name, without leading `_` and `.`: readers of Parquet directories skip such files."""
    return sweep[:SHOWN_CHARACTERS].lstrip("_.") or "sweep"


def _holds(results: Storage, path: str, row: Row) -> bool:
    """Whether all rows of a file have the key of this row."""
    try:
        stored = _parse(results.read_bytes(path), row["date"])
    except (ValueError, OSError):
        return False
    return stored is not None and all(other[key] == row[key] for other in stored for key in IDENTITY)
