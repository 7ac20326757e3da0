"""A lease on a directory: one process at a time writes there, on any file system.

To acquire it, a process writes its own lease file to `lock/`, then lists that directory: if no other lease is live, it
holds the directory. Of two processes that acquire it at the same moment, at least one sees the other's file, since the
storage is read-after-write consistent (local disks under the kernel's lock of the directory; S3, GCS and Azure always).
The holder renews its lease. The lease of a crashed holder expires after `LEASE_S`; a process on the same machine
detects the crash at once.

The age of a lease is the modification time of a file written now, less that of the lease file. Both are of the file
system's clock; clocks of machines matter only if the file system has no modification times.

The lease fences the store: after a holder fails to renew it in time, the holder stops; all writes through the store,
stores made from it (`Storage.at`, `Storage.fenced`) and their copies in workers are refused. The check precedes the
write, and is not atomic with it: pyarrow's file systems have no conditional writes.
"""

import contextlib
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from raysep.errors import RaysepError, StorageError
from raysep.process import identity, signals
from raysep.storage.kernel_lock import exclusive
from raysep.storage.store import LEASES, Storage

LEASE_S = 120.0
# How long processes that acquire a lease at the same moment retry, on object stores, until one of them wins.
PATIENCE_S = 4.0
# Names of leases that this process holds: its other lease files, which could not be deleted, are not live.
_held: set[str] = set()


class Lease:
    """The lease that this process holds, or a copy of a lease that another process holds.

    Args:
        uri: URI of the leased directory.
        name: name of the lease file.
        what: description of the directory, for messages: `the run`.
    """

    def __init__(self, uri: str, name: str, what: str) -> None:
        self.uri, self.name, self.what = uri, name, what
        self._renewed: float | None = None
        self.lost = threading.Event()

    def __reduce__(self) -> tuple[type["Lease"], tuple[str, str, str]]:
        return Lease, (self.uri, self.name, self.what)

    @cached_property
    def _store(self) -> Storage:
        # Opened at need: on object stores that takes a request, and every copy of a fenced store has its lease.
        return Storage(self.uri)

    def renewed(self, at: float) -> None:
        """Record that the holder renewed the lease at `at`, by `_clock`."""
        self._renewed = at

    def fresh(self) -> bool:
        """Whether the holder has renewed the lease in time, so that no other process may have acquired it."""
        return self._renewed is not None and _clock() - self._renewed < LEASE_S

    def check(self) -> None:
        """Raise StorageError if another process may have acquired the lease."""
        # A process that acquires the directory first deletes the expired lease file.
        if self.lost.is_set() or not (self.fresh() or self._store.is_file(file_of(self.name))):
            raise StorageError(self.message())

    def message(self) -> str:
        """The message for a lost lease."""
        return (
            f"{self._store.display()}: this process could not renew its lease of {self.what} for {LEASE_S:g} s, "
            "and another process may have acquired it; finished results are kept"
        )


@dataclass(frozen=True)
class Claim:
    """A lease file: its writer, and its modification time by the clock of the file system, or else of the writer."""

    writer: dict[str, Any]
    at: float

    def live(self, now: float) -> bool:
        """Whether the lease is unexpired and its writer may be alive."""
        if (
            self.writer["host"] == socket.gethostname()
            and self.writer["pids"] == identity.pid_namespace() != identity.UNKNOWN
        ):
            started = identity.start_time(self.writer["pid"])
            runs = started is not None and started == self.writer["started"]
            return runs and (self.writer["pid"] != os.getpid() or self.writer["id"] in _held)
        return now - self.at < LEASE_S


@contextmanager
def held(store: Storage, what: str) -> Iterator[None]:
    """Hold the lease of a directory for the duration of a block, and fence the store with it.

    Args:
        what: description of the directory, for messages: `the run`.

    Raises:
        RaysepError: another process holds the lease (the message names its PID, host and start); the directory can't be
            written to; or this process could not renew its lease in time.
    """
    with _identity() as mine:
        lease = Lease(store.full_uri, mine["id"], what)
        lease.renewed(_clock())
        try:
            _acquire(store, mine, what)
        except StorageError:
            raise
        except OSError as error:
            raise RaysepError(f"{store.display()} can't be written to: {error.strerror or error}") from None
        over, fences = threading.Event(), store.fences
        renewal = threading.Thread(target=_renew, args=(store, mine, lease, over), name="lease", daemon=True)
        renewal.start()
        store.fences = (*fences, lease)
        try:
            yield
        except KeyboardInterrupt:
            if not lease.lost.is_set():
                raise
        finally:
            over.set()
            renewal.join()
            _release(store, mine)
            # A store whose lease is lost stays fenced.
            store.fences = store.fences if lease.lost.is_set() else fences
        if lease.lost.is_set():
            raise RaysepError(lease.message())


def holder(store: Storage) -> dict[str, Any] | None:
    """Host, PID and start (`since`) of the lease holder of a directory; None without one."""
    if not read_claims(store):
        return None
    with _identity() as mine:
        try:
            with exclusive(store):
                return oldest(_claims(store, mine, "it")[0].values())
        finally:
            _release(store, mine)


def file_of(name: str) -> str:
    """The path of a lease file."""
    return f"{LEASES}/{name}.json"


def read_claims(store: Storage) -> dict[str, Claim]:
    """All readable lease files, by name."""
    claims = {}
    for path, at in store.times(LEASES).items():
        with contextlib.suppress(FileNotFoundError, StorageError):
            content = store.read_json(path)
            with store.understood(path):
                writer = {name: content[name] for name in ("id", "host", "pid", "pids", "started", "since")}
                claims[content["id"]] = Claim(writer, content["at"] if at is None else at)
    return claims


def oldest(claims: Iterable[Claim]) -> dict[str, Any] | None:
    """Process that wrote the oldest lease, or None."""
    return min((claim.writer for claim in claims), key=lambda writer: str(writer["since"]), default=None)


@contextmanager
def _identity() -> Iterator[dict[str, Any]]:
    """Content of a new lease file of this process, which holds it for the duration of a `with` block."""
    name = uuid.uuid4().hex
    mine = {
        "id": name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pids": identity.pid_namespace(),
        "started": identity.start_time(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _held.add(name)
    try:
        yield mine
    finally:
        _held.discard(name)


def _claims(store: Storage, mine: dict[str, Any], what: str) -> tuple[dict[str, Claim], dict[str, Claim]]:
    """Write this process' lease file, then list the others: the live and the expired ones."""
    store.write_json(file_of(mine["id"]), {**mine, "at": time.time()})
    others = read_claims(store)
    claim = others.pop(mine["id"], None)
    if claim is None:
        raise RaysepError(
            f"{store.display()}: storage is not read-after-write consistent (the new lease file is not listed): cannot "
            f"lock {what}"
        )
    live = {name: other for name, other in others.items() if other.live(claim.at)}
    return live, {name: other for name, other in others.items() if name not in live}


def _acquire(store: Storage, mine: dict[str, Any], what: str) -> None:
    latest = time.monotonic() + PATIENCE_S
    while True:
        with exclusive(store):
            live, expired = _claims(store, mine, what)
            if not live:
                for name in expired:
                    store.delete(file_of(name))
                return
            # On local disks the kernel's lock excludes concurrent acquisition, so there is nothing to retry.
            retry = not store.is_local and time.monotonic() < latest
            if not retry or min(live) < mine["id"]:
                store.delete(file_of(mine["id"]))
        if not retry:
            other = oldest(live.values())
            assert other is not None
            raise RaysepError(
                f"{store.display()}: {what} is locked by process {other['pid']} on {other['host']}, since "
                f"{other['since']}. Wait for it, or stop it; a crashed process loses its lease after {LEASE_S:g} s."
            )
        time.sleep(random.uniform(0.1, 0.5))


def _renew(store: Storage, mine: dict[str, Any], lease: Lease, over: threading.Event) -> None:
    while not over.wait(LEASE_S / 4):
        began = _clock()
        try:
            holds = _renewed(store, mine, lease)
        except Exception:  # noqa: BLE001  (file systems raise anything; only the age of the lease counts)
            holds = lease.fresh()
        else:
            lease.renewed(began)
        if not holds:
            with contextlib.suppress(Exception):
                store.delete(file_of(mine["id"]))
            lease.lost.set()
            # Stops the process, within `signals.caught`.
            signals.interrupt()
            return


def _renewed(store: Storage, mine: dict[str, Any], lease: Lease) -> bool:
    """Renew the lease; returns False if another process may have acquired the directory meanwhile."""
    with exclusive(store):
        if not store.is_file(file_of(mine["id"])):
            return False
        live, _ = _claims(store, mine, lease.what)
        # While this lease is fresh, other live lease files are of processes that are about to be refused.
        return lease.fresh() or not live


def _clock() -> float:
    """Seconds of a monotonic clock that includes time in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _release(store: Storage, mine: dict[str, Any]) -> None:
    # A lease file that can't be deleted is no longer live.
    with contextlib.suppress(OSError), exclusive(store):
        store.delete(file_of(mine["id"]))
        if store.is_local:
            # Delete directories that were created only for the lease; rmdir fails if they are not empty.
            Path(store.root, LEASES).rmdir()
            Path(store.root).rmdir()
