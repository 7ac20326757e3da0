"""One process at a time in a directory, on any file system: a lease that its holder renews.

A holder that is killed renews nothing, and its lease ends by itself; on the machine that it ran on, that it is gone
is seen at once. Local files are created exclusively. pyarrow has no such call for object stores: there the lease is
written, and read back after a moment: who wrote last has it.
"""

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

from raysep.errors import RaysepError
from raysep.storage import Storage

FILE = "lock.json"
LEASE_S = 60.0
SETTLE_S = 1.0


@contextmanager
def held(storage: Storage, what: str) -> Iterator[None]:
    """Hold the lock of a directory for the length of a block.

    Args:
        what: is locked, for the message: `the run`.

    Raises:
        RaysepError: another process holds it; says which, and since when.
    """
    mine = {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _take(storage, mine, what)
    over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, mine, over), name="lock", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        over.set()
        renewal.join()
        found = _read(storage)
        if found is not None and found["id"] == mine["id"]:
            storage.delete(FILE)


def holder(storage: Storage) -> dict[str, Any] | None:
    """Who holds the lock of a directory by now: host, pid, since; None where nobody does."""
    found = _read(storage)
    return found if found is not None and _alive(found) else None


def _take(storage: Storage, mine: dict[str, Any], what: str) -> None:
    found = holder(storage)
    if found is not None:
        raise RaysepError(
            f"{storage.display()}: {what} is being worked on by process {found['pid']} of {found['host']}, since "
            f"{found['since']}. Wait for it, or stop it; a holder that is gone is forgotten after {LEASE_S:g} s."
        )
    storage.delete(FILE)
    content = _lease(mine)
    if storage.is_local:
        Path(storage.root).mkdir(parents=True, exist_ok=True)
        try:
            with Path(storage.path(FILE)).open("xb") as file:
                file.write(content)
        except FileExistsError:
            # Another was faster: its lease says who.
            return _take(storage, mine, what)
    else:
        storage.write_bytes(FILE, content)
        time.sleep(SETTLE_S)
        last = _read(storage)
        if last is None or last["id"] != mine["id"]:
            return _take(storage, mine, what)
    return None


def _renew(storage: Storage, mine: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(LEASE_S / 4):
        try:
            storage.write_bytes(FILE, _lease(mine))
        except OSError:
            # Storage that is away for a while: tried again, while the lease lasts.
            continue


def _lease(mine: dict[str, Any]) -> bytes:
    return json.dumps({**mine, "until": time.time() + LEASE_S}).encode()


def _read(storage: Storage) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = storage.read_json(FILE)
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        # Created and not yet written to.
        return {"id": "", "host": "an unknown machine", "pid": "?", "since": "just now", "until": time.time() + 1}
    return found


def _alive(lease: dict[str, Any]) -> bool:
    if lease["host"] == socket.gethostname() and isinstance(lease["pid"], int):
        started = _started(lease["pid"])
        return started is not None and started == lease.get("started")
    return bool(lease["until"] > time.time())


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
