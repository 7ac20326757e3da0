"""One process at a time in a directory, on any file system: a lease that its holder renews.

Who comes writes a claim, a file of its own in `lock/`, and looks who else has one: alone, it holds the directory. Of
two that come at the same moment at least one sees the other, since a file system that shows what was written (local
disks under the kernel's lock of the directory; S3, GCS and Azure always) shows one's claim to whoever wrote later.

A holder that is killed renews nothing, and its lease ends by itself; on the machine that it ran on, that it is gone
is seen at once. A holder that can't renew it for as long writes nothing more, and ends: others may have taken over.
"""

import contextlib
import fcntl
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysep.errors import RaysepError, StorageError
from raysep.process import signals
from raysep.storage import claims
from raysep.storage.store import Storage

# How long those that came at the same moment sort out who is first, on object stores.
PATIENCE_S = 4.0


@contextmanager
def held(storage: Storage, what: str) -> Iterator[None]:
    """Hold the lock of a directory for the length of a block.

    Args:
        what: is locked, for the message: `the run`.

    Raises:
        RaysepError: another process holds it, says which, and since when; or the directory can't be written to; or
            this process stood still for so long that another one has taken over.
    """
    with claims.identity() as mine:
        try:
            _take(storage, mine, what)
        except StorageError:
            raise
        except OSError as error:
            raise RaysepError(f"{storage.display()} can't be written to: {error.strerror or error}") from None
        over, lost = threading.Event(), threading.Event()
        arguments = (storage, mine, what, over, lost)
        renewal = threading.Thread(target=_renew, args=arguments, name="lock", daemon=True)
        renewal.start()
        try:
            yield
        except KeyboardInterrupt:
            if not lost.is_set():
                raise
        finally:
            over.set()
            renewal.join()
            _give_back(storage, mine)
        if lost.is_set():
            raise RaysepError(_taken_over(storage, what))


def holder(storage: Storage) -> dict[str, Any] | None:
    """Who holds the lock of a directory by now: host, pid, since; None where nobody does."""
    if not claims.read_all(storage):
        return None
    with claims.identity() as mine:
        try:
            with _alone(storage):
                return claims.first(claims.others(storage, mine, "it")[0].values())
        finally:
            _give_back(storage, mine)


def _take(storage: Storage, mine: dict[str, Any], what: str) -> None:
    latest = time.monotonic() + PATIENCE_S
    while True:
        with _alone(storage):
            alive, gone = claims.others(storage, mine, what)
            if not alive:
                for name in gone:
                    storage.delete(claims.file_of(name))
                return
            # Under the kernel's lock nobody else is just coming.
            again = not storage.is_local and time.monotonic() < latest
            if not again or min(alive) < mine["id"]:
                storage.delete(claims.file_of(mine["id"]))
        if not again:
            other = claims.first(alive.values())
            assert other is not None
            raise RaysepError(
                f"{storage.display()}: {what} is being worked on by process {other['pid']} of {other['host']}, "
                f"since {other['since']}. Wait for it, or stop it; a holder that is gone is forgotten after "
                f"{claims.LEASE_S:g} s."
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
        try:
            directory = os.open(root, os.O_RDONLY)
        except FileNotFoundError:
            continue
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


def _renew(storage: Storage, mine: dict[str, Any], what: str, over: threading.Event, lost: threading.Event) -> None:
    renewed = _clock()
    while not over.wait(claims.LEASE_S / 4):
        began = _clock()
        try:
            mine_still = _renewed(storage, mine, what, renewed)
        except Exception:  # noqa: BLE001  (file systems raise what they like; what counts is how long nothing was heard)
            mine_still = _clock() - renewed < claims.LEASE_S
        else:
            renewed = began
        if not mine_still:
            with contextlib.suppress(Exception):
                storage.delete(claims.file_of(mine["id"]))
            # From here on this process writes nothing; where signals are caught, it is ended.
            storage.closed = _taken_over(storage, what)
            lost.set()
            signals.interrupt()
            return


def _renewed(storage: Storage, mine: dict[str, Any], what: str, before: float) -> bool:
    """Whether the claim was there, is written again, and nobody can have taken over in between."""
    with _alone(storage):
        if not storage.is_file(claims.file_of(mine["id"])):
            return False
        alive, _ = claims.others(storage, mine, what)
        # In time, others can only be those that come and are refused.
        return _clock() - before < claims.LEASE_S or not alive


def _clock() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _taken_over(storage: Storage, what: str) -> str:
    return (
        f"{storage.display()}: this process could not renew its lock of {what} for {claims.LEASE_S:g} s, and another "
        "one may have taken over; what was finished is kept"
    )


def _give_back(storage: Storage, mine: dict[str, Any]) -> None:
    # What can't be taken away now is in no use any more.
    with contextlib.suppress(OSError), _alone(storage):
        storage.delete(claims.file_of(mine["id"]))
        if storage.is_local:
            # Of a directory that was made for the lock alone, nothing is left.
            Path(storage.root, claims.DIRECTORY).rmdir()
            Path(storage.root).rmdir()
