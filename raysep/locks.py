"""One process at a time in a directory, on any file system: a lease that its holder renews.

A holder that is killed renews nothing, and its lease ends by itself; on the machine that it ran on, that it is gone
is seen at once. Who reads and writes a lease on a local disk holds the kernel's lock of the directory meanwhile. Object
stores have nothing like it in pyarrow: there the lease is written, and read back after a moment: who wrote last has
it. Leases hold times of the holder's clock: machines whose clocks are further apart than a lease can't rely on them.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raysep.errors import RaysepError, StorageError
from raysep.storage import Storage

FILE = "lock.json"
LEASE_S = 120.0
SETTLE_S = 1.0
Lease = dict[str, Any]


@contextmanager
def held(storage: Storage, what: str) -> Iterator[None]:
    """Hold the lock of a directory for the length of a block.

    Args:
        what: is locked, for the message: `the run`.

    Raises:
        RaysepError: another process holds it, says which, and since when; or the directory can't be written to.
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
    over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, mine, over), name="lock", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        over.set()
        renewal.join()
        _give_back(storage, mine)


def holder(storage: Storage) -> Lease | None:
    """Who holds the lock of a directory by now: host, pid, since; None where nobody does."""
    found = _read(storage)
    return found if found is not None and _alive(found) else None


def _take(storage: Storage, mine: Lease, what: str) -> None:
    while True:
        with _alone(storage):
            found = _read(storage)
            if found is not None and _alive(found):
                raise RaysepError(
                    f"{storage.display()}: {what} is being worked on by process {found['pid']} of {found['host']}, "
                    f"since {found['since']}. Wait for it, or stop it; a holder that is gone is forgotten after "
                    f"{LEASE_S:g} s."
                )
            storage.write_bytes(FILE, _content(mine))
        if storage.is_local:
            return
        time.sleep(SETTLE_S)
        last = _read(storage)
        if last is not None and last["id"] == mine["id"]:
            return


@contextmanager
def _alone(storage: Storage) -> Iterator[None]:
    """On a local disk: nobody else looks at the lease, or changes it, for the length of a block."""
    if not storage.is_local:
        yield
        return
    root = Path(storage.root)
    while True:
        root.mkdir(parents=True, exist_ok=True)
        directory = os.open(root, os.O_RDONLY)
        try:
            # Network file systems may not have it for directories; the lease alone is what is left there.
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


def _renew(storage: Storage, mine: Lease, over: threading.Event) -> None:
    while not over.wait(LEASE_S / 4):
        # Storage that is away for a while: tried again, while the lease lasts.
        with contextlib.suppress(OSError), _alone(storage):
            found = _read(storage)
            if found is None or found["id"] != mine["id"]:
                # This process stood still for so long that another one has taken over.
                return
            storage.write_bytes(FILE, _content(mine))


def _give_back(storage: Storage, mine: Lease) -> None:
    # What can't be given back now ends by itself.
    with contextlib.suppress(OSError), _alone(storage):
        found = _read(storage)
        if found is not None and found["id"] == mine["id"]:
            storage.delete(FILE)
        if storage.is_local:
            # Of a directory that was made for the lock alone, nothing is left.
            Path(storage.root).rmdir()


def _content(mine: Lease) -> bytes:
    return json.dumps({**mine, "until": time.time() + LEASE_S}).encode()


def _read(storage: Storage) -> Lease | None:
    try:
        found: Lease = storage.read_json(FILE)
    except (FileNotFoundError, StorageError):
        # A lease that nobody can read protects nobody.
        return None
    return found


def _alive(lease: Lease) -> bool:
    if lease["host"] == socket.gethostname() and lease.get("pids") == _pids():
        started = _started(lease["pid"])
        return started is not None and started == lease.get("started")
    return bool(lease["until"] > time.time())


def _pids() -> str:
    """Whose process numbers these are: containers of one machine may share its name and not its processes."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "?"


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in ticks since boot: tells it from a later one with its pid.

    None where there is no such process, or it has ended and nobody has looked.
    """
    try:
        # pid (name) state ...; the name may hold anything, and ends with the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self").exists() else "unknown"
    return None if fields[0] == "Z" else fields[19]
