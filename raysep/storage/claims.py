"""The files of `lock/`: who claims a directory, and whether that process is still there.

How old a claim is, is told by the times that the file system gives to it and to one's own: no machine's clock matters,
unless the file system has no such times.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raysep.errors import RaysepError, StorageError
from raysep.storage.store import Storage

DIRECTORY = "lock"
LEASE_S = 120.0
# Where no /proc tells of processes, the lease alone counts.
UNKNOWN = "?"
# Of the claims of this process, those that are in use: one that could not be taken away protects nothing.
_in_use: set[str] = set()


@dataclass(frozen=True)
class Claim:
    """A file of `lock/`: who wrote it, and when by the file system's clock, or else by the writer's."""

    writer: dict[str, Any]
    at: float

    def alive(self, now: float) -> bool:
        """Whether its writer is there, and not just late."""
        if self.writer["host"] == socket.gethostname() and self.writer["pids"] == _pids() != UNKNOWN:
            started = _started(self.writer["pid"])
            there = started is not None and started == self.writer["started"]
            return there and (self.writer["pid"] != os.getpid() or self.writer["id"] in _in_use)
        return now - self.at < LEASE_S


@contextmanager
def identity() -> Iterator[dict[str, Any]]:
    """What a claim of this process says."""
    name = uuid.uuid4().hex
    mine = {
        "id": name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pids": _pids(),
        "started": _started(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _in_use.add(name)
    try:
        yield mine
    finally:
        _in_use.discard(name)


def file_of(name: str) -> str:
    """The file of a claim."""
    return f"{DIRECTORY}/{name}.json"


def others(storage: Storage, mine: dict[str, Any], what: str) -> tuple[dict[str, Claim], dict[str, Claim]]:
    """Write the own claim; the claims of others that are alive, and those that are not, from a listing after it."""
    storage.write_json(file_of(mine["id"]), {**mine, "at": time.time()})
    found = read_all(storage)
    own = found.pop(mine["id"], None)
    if own is None:
        raise RaysepError(f"{storage.display()} doesn't show what was just written there: {what} can't be locked")
    alive = {name: claim for name, claim in found.items() if claim.alive(own.at)}
    return alive, {name: claim for name, claim in found.items() if name not in alive}


def read_all(storage: Storage) -> dict[str, Claim]:
    """All claims by their names, those that nobody can read aside: they protect nobody."""
    found = {}
    for path, at in storage.times(DIRECTORY).items():
        with contextlib.suppress(FileNotFoundError, StorageError):
            content = storage.read_json(path)
            with storage.understood(path):
                writer = {name: content[name] for name in ("id", "host", "pid", "pids", "started", "since")}
                found[content["id"]] = Claim(writer, content["at"] if at is None else at)
    return found


def first(claims: Iterable[Claim]) -> dict[str, Any] | None:
    """Who of the writers came first; None of none."""
    return min((claim.writer for claim in claims), key=lambda writer: str(writer["since"]), default=None)


def _pids() -> str:
    """Whose process numbers these are: names of machines repeat, and containers share them and not their processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return UNKNOWN


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in ticks since boot: tells it from a later one with its pid.

    None where there is no such process, or it has ended and nobody has looked, or no /proc.
    """
    try:
        # pid (name) state ...; the name may hold anything, and ends with the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] == "Z" else fields[19]
