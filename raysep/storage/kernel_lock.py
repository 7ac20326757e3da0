"""The kernel's lock of a local directory, which ends with the process that holds it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysep.storage.store import Storage


@contextmanager
def exclusive(store: Storage) -> Iterator[None]:
    """Lock a local directory, created if missing, for the duration of a block. No-op on other file systems."""
    if not store.is_local:
        yield
        return
    root = Path(store.root)
    while True:
        root.mkdir(parents=True, exist_ok=True)
        try:
            directory = os.open(root, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            # Network file systems may not support locks of directories.
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_EX)
            # The previous owner of the lock may have deleted the directory.
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
