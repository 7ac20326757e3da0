"""The log of a run: JSON lines, one file per call of raysep, in the run directory."""

import contextlib
import json
import threading
import time
from datetime import UTC, datetime
from typing import Any

from raysep.storage.store import Storage

DIRECTORY = "logs"
# Object stores can't append: the whole file is rewritten, at most once in this interval.
INTERVAL_S = 10.0


class Journal:
    """Events in memory, and in a file after `keep_in`.

    They fit in memory: a call logs thousands of lines, one per event, none per image.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._storage: Storage | None = None
        self._written, self._at = 0, 0.0
        self._lock = threading.Lock()
        self.name = f"{DIRECTORY}/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.jsonl"

    def add(self, event: dict[str, Any]) -> None:
        """Add an event to the log."""
        with self._lock:
            self._lines.append(json.dumps(event, ensure_ascii=False, default=str))
        if time.monotonic() - self._at > INTERVAL_S:
            self.save()

    def keep_in(self, storage: Storage) -> None:
        """Save the log, with all earlier events, to a storage from now on."""
        self._storage = storage
        self.save()

    def save(self) -> None:
        """Write the file if there are new events."""
        with self._lock:
            if self._storage is None or self._written == len(self._lines):
                return
            self._at = time.monotonic()
            # A failed write is repeated with the next event, and must not fail the run.
            with contextlib.suppress(OSError):
                self._storage.write_bytes(self.name, ("\n".join(self._lines) + "\n").encode())
                self._written = len(self._lines)
