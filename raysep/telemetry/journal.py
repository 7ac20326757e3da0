"""The log of a run: a JSON object a line, in a file of its own for each call, kept in the run's directory."""

import contextlib
import json
import threading
import time
from datetime import UTC, datetime
from typing import Any

from raysep.storage.store import Storage

DIRECTORY = "logs"
# Object stores can't append: the file is written anew, at most this often.
INTERVAL_S = 10.0


class Journal:
    """Events in memory, and in a file from when a storage is named.

    A call logs thousands of lines, not millions: one for each event, none for each image.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._storage: Storage | None = None
        self._written, self._at = 0, 0.0
        self._lock = threading.Lock()
        self.name = f"{DIRECTORY}/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.jsonl"

    def add(self, event: dict[str, Any]) -> None:
        """Log an event."""
        with self._lock:
            self._lines.append(json.dumps(event, ensure_ascii=False, default=str))
        if time.monotonic() - self._at > INTERVAL_S:
            self.save()

    def keep_in(self, storage: Storage) -> None:
        """From here on, and with all that was logged before, the log is kept there."""
        self._storage = storage
        self.save()

    def save(self) -> None:
        """Write what is new."""
        with self._lock:
            if self._storage is None or self._written == len(self._lines):
                return
            self._at = time.monotonic()
            # A log that can't be written now is written with the next event; it is no reason to lose a run.
            with contextlib.suppress(OSError):
                self._storage.write_bytes(self.name, ("\n".join(self._lines) + "\n").encode())
                self._written = len(self._lines)
