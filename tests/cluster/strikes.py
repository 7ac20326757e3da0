"""Kills what works on three nodes, one thing of each kind as soon as it is there: the chaos program's short form."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.nodes import Nodes

# In the order of the stages. The driver goes when embedding is on again after it lost an actor.
TARGETS = ("ray::ImplicitFunc", "ray::MapWorker", "ray::MapWorker then the driver", "ray::Scorer")
DRIVER = "-m raysep run"


class Strikes(threading.Thread):
    """Strikes each target once, within a block.

    Attributes:
        done: what was killed by now.
    """

    def __init__(self, nodes: Nodes, targets: Sequence[str] = TARGETS) -> None:
        super().__init__(daemon=True)
        self._nodes, self._left, self._over = nodes, list(targets), threading.Event()
        self.done: list[str] = []

    def run(self) -> None:
        """As a thread does."""
        while self._left and not self._over.is_set():
            seen, _, instead = self._left[0].partition(" then ")
            if found := self._processes(seen):
                # It has begun by then; and embedding is not over before the driver's turn comes.
                time.sleep(0.5)
                victims = self._processes(DRIVER) if instead else found
                for pid in victims[-1:]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.done.append(self._left.pop(0))
            self._over.wait(0.1)

    def __enter__(self) -> "Strikes":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def _processes(self, title: str) -> list[int]:
        """Processes of the nodes with this in their command line."""
        found = []
        for name in self._nodes.names:
            listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
            for pid in listed.stdout.split():
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if title in line and not line.startswith(("sh ", "/bin/sh", "bash ")):
                        found.append(int(pid))
        return sorted(found)
