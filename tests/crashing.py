"""Processes that are ended at one of their file operations: it takes all later ones with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from raysep.storage import lease
from raysep.storage.store import Storage


class CrashError(BaseException):
    """The process is gone."""


class Crashing:
    """A file system that is there until a given change of it, and does nothing from then on.

    A file that is being written then is cut in half.
    """

    def __init__(self, fs: pafs.FileSystem, at: int | None) -> None:
        self._fs, self._at, self.changes = fs, at, 0

    def __getattr__(self, name: str) -> Any:
        if name in {"move", "delete_file"}:
            return lambda *arguments: self._change(lambda: getattr(self._fs, name)(*arguments))
        return getattr(self._fs, name)

    def _change(self, work: Any) -> Any:
        self._count()
        return work()

    def _count(self) -> None:
        self.changes += 1
        if self._at is not None and self.changes >= self._at:
            raise CrashError

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[Any]:
        self._count()
        outer = self
        with self._fs.open_output_stream(path) as stream:

            class Half:
                def write(self, content: bytes) -> None:
                    try:
                        outer._count()
                    except CrashError:
                        stream.write(content[: len(content) // 2])
                        raise
                    stream.write(content)

            yield Half()


class Crashes:
    """Has every `Storage` below a directory change files through one `Crashing` at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self._at: int | None = None
        self._fs: Crashing | None = None
        plain = Storage.__init__

        def wrapped(storage: Storage, uri: str, *fences: Any) -> None:
            plain(storage, uri, *fences)
            if storage.root.startswith(str(directory)):
                self._fs = self._fs or Crashing(storage.fs, self._at)
                storage.fs = self._fs

        monkeypatch.setattr(Storage, "__init__", wrapped)
        # The process that crashed is this one: its lock must look like one that is gone.
        monkeypatch.setattr(lease.Claim, "live", lambda claim, now: False)

    def begin(self, at: int | None = None) -> None:
        """From now on it is another process, which ends at this change; None: at none."""
        self._at, self._fs = at, None

    @property
    def changes(self) -> int:
        """How many there were since `begin`."""
        return self._fs.changes if self._fs is not None else 0
