"""One process at a time in a directory, on any file system: a lease that its holder renews.

Who comes writes a claim, a file of its own in `lock/`, and looks who else has one: alone, it holds the directory. Of
two that come at the same moment at least one sees the other, since a file system that shows what was written (local
disks under the kernel's lock of the directory; S3, GCS and Azure always) shows one's claim to whoever wrote later.

A holder that is killed renews nothing, and its lease ends by itself; on the machine that it ran on, that it is gone
is seen at once. How old a claim is, is told by the times that the file system gives to it and to one's own: no
machine's clock matters, unless the file system has no such times.
"""

import contextlib
import fcntl
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raysep import interrupts
from raysep.errors import RaysepError, StorageError
from raysep.storage import Storage

DIRECTORY = "lock"
LEASE_S = 120.0
# Where no /proc tells of processes, the lease alone counts.
UNKNOWN = "?"
# How long those that came at the same moment sort out who is first, on object stores.
PATIENCE_S = 4.0


@dataclass(frozen=True)
class Claim:
    """A file of `lock/`: who wrote it, and when by the file system's clock, or else by the writer's."""

    writer: dict[str, Any]
    at: float

    def alive(self, now: float) -> bool:
        """Whether its writer is there, and not just late."""
        if self.writer["host"] == socket.gethostname() and self.writer["pids"] == _pids() != UNKNOWN:
            started = _started(self.writer["pid"])
            return started is not None and started == self.writer["started"]
        return now - self.at < LEASE_S


@contextmanager
def held(storage: Storage, what: str) -> Iterator[None]:
    """Hold the lock of a directory for the length of a block.

    Args:
        what: is locked, for the message: `the run`.

    Raises:
        RaysepError: another process holds it, says which, and since when; or the directory can't be written to; or
            this process stood still for so long that another one has taken over.
    """
    mine = {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pids": _pids(),
        "started": _started(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        _take(storage, mine, what)
    except StorageError:
        raise
    except OSError as error:
        raise RaysepError(f"{storage.display()} can't be written to: {error.strerror or error}") from None
    over, lost = threading.Event(), threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, mine, over, lost), name="lock", daemon=True)
    renewal.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise RaysepError(
            f"{storage.display()}: {what} was taken over by another process, since this one stood still for longer "
            f"than {LEASE_S:g} s; what it had finished is kept"
        ) from None
    finally:
        over.set()
        renewal.join()
        _give_back(storage, mine)


def holder(storage: Storage) -> dict[str, Any] | None:
    """Who holds the lock of a directory by now: host, pid, since; None where nobody does."""
    now = time.time()
    return _first([claim for claim in _claims(storage).values() if claim.alive(now)])


def _take(storage: Storage, mine: dict[str, Any], what: str) -> None:
    latest = time.monotonic() + PATIENCE_S
    while True:
        with _alone(storage):
            _write(storage, mine)
            found = _claims(storage)
            own = found.pop(mine["id"], None)
            if own is None:
                raise RaysepError(
                    f"{storage.display()} doesn't show what was just written there: {what} can't be locked"
                )
            now = own.at
            alive = {name: claim for name, claim in found.items() if claim.alive(now)}
            if not alive:
                for name in found:
                    storage.delete(_file(name))
                return
            # Under the kernel's lock nobody else is just coming.
            again = not storage.is_local and time.monotonic() < latest
            if not again or min(alive) < mine["id"]:
                storage.delete(_file(mine["id"]))
        if not again:
            other = _first(list(alive.values()))
            assert other is not None
            raise RaysepError(
                f"{storage.display()}: {what} is being worked on by process {other['pid']} of {other['host']}, "
                f"since {other['since']}. Wait for it, or stop it; a holder that is gone is forgotten after "
                f"{LEASE_S:g} s."
            )
        time.sleep(random.uniform(0.1, 0.5))


@contextmanager
def _alone(storage: Storage) -> Iterator[None]:
    """On a local disk: nobody else looks at the claims, or changes them, for the length of a block."""
    if not storage.is_local:
        yield
        return
    root = Path(storage.root)
    while True:
        root.mkdir(parents=True, exist_ok=True)
        directory = os.open(root, os.O_RDONLY)
        try:
            # Network file systems may not have it for directories; the claims alone are what is left there.
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_EX)
            # Whoever had it before may have taken the directory away.
            if _same(root, directory):
                yield
                return
        finally:
            os.close(directory)


def _same(root: Path, directory: int) -> bool:
    try:
        return root.stat().st_ino == os.fstat(directory).st_ino
    except FileNotFoundError:
        return False


def _renew(storage: Storage, mine: dict[str, Any], over: threading.Event, lost: threading.Event) -> None:
    while not over.wait(LEASE_S / 4):
        # Storage that is away for a while: tried again, while the lease lasts.
        with contextlib.suppress(OSError), _alone(storage):
            if not storage.is_file(_file(mine["id"])):
                # Who took over has taken it away.
                lost.set()
                interrupts.interrupt()
                return
            _write(storage, mine)


def _give_back(storage: Storage, mine: dict[str, Any]) -> None:
    # What can't be given back now ends by itself.
    with contextlib.suppress(OSError), _alone(storage):
        storage.delete(_file(mine["id"]))
        if storage.is_local:
            # Of a directory that was made for the lock alone, nothing is left.
            Path(storage.root, DIRECTORY).rmdir()
            Path(storage.root).rmdir()


def _file(name: str) -> str:
    return f"{DIRECTORY}/{name}.json"


def _write(storage: Storage, mine: dict[str, Any]) -> None:
    storage.write_json(_file(mine["id"]), {**mine, "at": time.time()})


def _claims(storage: Storage) -> dict[str, Claim]:
    """All claims by their names, those that nobody can read aside: they protect nobody."""
    found = {}
    for path, at in storage.times(DIRECTORY).items():
        with contextlib.suppress(FileNotFoundError, StorageError):
            content = storage.read_json(path)
            with storage.understood(path):
                writer = {name: content[name] for name in ("host", "pid", "pids", "started", "since")}
                found[content["id"]] = Claim(writer, content["at"] if at is None else at)
    return found


def _first(claims: list[Claim]) -> dict[str, Any] | None:
    return min((claim.writer for claim in claims), key=lambda writer: str(writer["since"]), default=None)


def _pids() -> str:
    """Whose process numbers these are: containers of one machine may share its name and not its processes."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
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
