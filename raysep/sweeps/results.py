"""The results table: a row for each cell of each round, in Parquet files partitioned by date.

A row is a file of its own, named after a hash of its sweep, round and cell: names may hold any character, and joined
they could be another row's. Writing a row again replaces it, so that no cell of a round is there twice, and rows of
sweeps that end at the same time don't meet. Several sweeps, of several versions of raysep, may share a table.
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
# The date is in the path, as the partitioning has it.
FILE_SCHEMA = pa.schema([field for field in SCHEMA if field.name != "date"])
Row = dict[str, Any]
DONE, FAILED = "done", "failed"
# What makes a row the one that it is.
IDENTITY = ("sweep", "round", "cell")
REQUIRED = (*IDENTITY, "state", "at")
# Where damaged files are set aside. Readers of Parquet directories pass over names that begin so.
ASIDE = "_damaged"
# A file that is taken for rows; and one whose name says whose, by so many characters of the sweep's name.
FILE = re.compile(r"date=[^/]*/[^/]+\.parquet")
OWNED = re.compile(r"/(?P<sweep>[^/]+)-[0-9a-f]{24}\.parquet$")
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Table:
    """What is read of a results table.

    Attributes:
        rows: oldest first; columns that a file doesn't have are None.
        damaged: why files can't be read as rows, by path. They count for nothing.
        foreign: Parquet files that are no rows of any sweep.
    """

    rows: list[Row]
    damaged: dict[str, str]
    foreign: list[str]

    def remarks(self, results: Storage) -> list[str]:
        """What is left out, a line for each file."""
        lines = [f"{results.display(path)} is damaged and left out: {why}" for path, why in self.damaged.items()]
        lines += [f"{results.display(path)} is no row of a sweep, and left out" for path in self.foreign]
        return [printable(line) for line in lines]


def put(results: Storage, row: Row) -> None:
    """Write a row, in place of what the same cell of the same round of the same sweep had before."""
    name = file_name(row)
    path = f"date={row['date']}/{name}"
    sink = io.BytesIO()
    content = pa.Table.from_pylist([{key: row.get(key) for key in FILE_SCHEMA.names}], schema=FILE_SCHEMA)
    # Without checksums, a bit that is flipped on a disk is another g.
    pq.write_table(content, sink, write_page_checksum=True)
    results.write_bytes(path, sink.getvalue())
    # As versions before this one named it: another row may have had the same name.
    old_name = ".".join(row[key] for key in IDENTITY) + ".parquet"
    for other in results.files():
        named = FILE.fullmatch(other) and other.rpartition("/")[2] in {name, old_name}
        if named and other != path and _holds(results, other, row):
            results.delete(other)


def file_name(row: Row) -> str:
    """The name of a row's file: its sweep for people, and a hash of its identity.

    >>> file_name({"sweep": "nightly", "round": "v1.2", "cell": "a"})
    'nightly-3f70ec1bce830cb9137988c4.parquet'
    """
    identity = json.dumps([row[key] for key in IDENTITY])
    return f"{_shown(row['sweep'])}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.parquet"


def rows(results: Storage) -> list[Row]:
    """Every row that can be read, oldest first."""
    return read(results).rows


def read(results: Storage) -> Table:
    """Every row, and what can't be read as one. Raises OSError where the storage can't be reached."""
    every: list[Row] = []
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
                    every += of_file
        # A row that was replaced since the listing is in a file that the listing didn't have.
        if not replaced:
            break
    found: dict[tuple[str, ...], Row] = {}
    # Of a row that was being replaced when its writer was killed, both files are there: the later one counts.
    for row in sorted(every, key=lambda row: row["at"]):
        key = tuple(row[name] for name in IDENTITY)
        found.pop(key, None)
        found[key] = row
    return Table(list(found.values()), damaged, foreign)


def set_aside(results: Storage, damaged: Iterable[str], sweep: str) -> dict[str, str]:
    """Move damaged files to where nothing reads them. The caller holds the lock of the sweep.

    A file that another sweep's name is on stays: a round of it may be writing it anew.

    Returns:
        Where the files are that could be moved.
    """
    moved = {}
    for path in damaged:
        named = OWNED.search(path)
        if named is not None and named["sweep"] != _shown(sweep):
            continue
        # Another user's file, or a table that may only be read, stays as well.
        with contextlib.suppress(OSError):
            content = results.read_bytes(path)
            if not _is_damaged(content):
                # It was written anew since, or could not be opened for a moment.
                continue
            target = f"{ASIDE}/{path}.{hashlib.sha256(content).hexdigest()[:12]}"
            results.write_bytes(target, content)
            results.delete(path)
            moved[path] = target
    return moved


def select(found: Iterable[Row], *, round: str | None = None, date: str | None = None) -> list[Row]:  # noqa: A002
    """The last row of each cell of each sweep, of a round or of a day."""
    last: dict[tuple[str, str], Row] = {}
    for row in found:
        if (round is None or row["round"] == round) and (date is None or row["date"] == date):
            last[row["sweep"], row["cell"]] = row
    return list(last.values())


def rounds(found: Sequence[Row], sweep: str) -> list[str]:
    """The rounds of a sweep, in the order of their last rows."""
    last = {row["round"]: row["at"] for row in found if row["sweep"] == sweep}
    return sorted(last, key=lambda label: last[label])


def _parse(content: bytes, date: str) -> list[Row] | None:
    """The rows of a file, as `FILE_SCHEMA` has them; None of a file that is no sweep's. Raises ValueError."""
    try:
        table = pq.read_table(
            io.BytesIO(content), use_threads=False, partitioning=None, page_checksum_verification=True
        )
        if not set(REQUIRED) <= set(table.column_names):
            return None
        columns = {}
        for field in FILE_SCHEMA:
            if field.name in table.column_names:
                # A time in other units is the same time.
                safe = not pa.types.is_timestamp(field.type)
                columns[field.name] = table[field.name].cast(field.type, safe=safe)
            else:
                columns[field.name] = pa.nulls(table.num_rows, field.type)
        found = pa.table(columns).to_pylist()
    except (pa.ArrowException, OSError, OverflowError) as error:
        # All of it is in memory: no storage is at fault.
        raise ValueError(str(error) or type(error).__name__) from None
    empty = [name for name in REQUIRED if any(row[name] is None for row in found)]
    if empty or not found:
        raise ValueError(f"no value in {', '.join(empty)}" if empty else "it has no row")
    return [{"date": date, **row} for row in found]


def _is_damaged(content: bytes) -> bool:
    try:
        _parse(content, "")
    except ValueError:
        return True
    return False


def _shown(sweep: str) -> str:
    """What a file's name shows of a sweep's. Readers of Parquet directories pass over names with other beginnings."""
    return sweep[:SHOWN_CHARACTERS].lstrip("_.") or "sweep"


def _holds(results: Storage, path: str, row: Row) -> bool:
    """Whether a file holds this row and no other."""
    try:
        held = _parse(results.read_bytes(path), row["date"])
    except (ValueError, OSError):
        return False
    return held is not None and all(other[key] == row[key] for other in held for key in IDENTITY)
