"""Measurements of a worker, which it returns to the driver together with its results.

The driver counts a report when the results arrive, so a lost worker loses no reported counts, and retried work is
counted once.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from raysep.storage import retries


@dataclass(frozen=True)
class Report:
    """Measurements of one piece of work.

    Attributes:
        node: address of the worker's node.
        seconds: duration of the work.
        waited_s: idle time of the worker before the work, in seconds.
        peak_gpu_bytes: peak memory of torch's allocator since the worker's start; None without a GPU.
        counts: by name: `bytes_read`, `bytes_written`, `kmeans_iterations`.
        again: number of retries, by cause.
        samples: durations in seconds, by name: `batch`, `forward`.
    """

    node: str
    seconds: float = 0.0
    waited_s: float = 0.0
    peak_gpu_bytes: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    again: dict[retries.Why, int] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The report as a dict: `Report(**plain)` restores it."""
        return asdict(self)


class Meter:
    """Measures the pieces of work of one process.

    >>> meter = Meter("10.0.0.1")
    >>> with meter.piece():
    ...     meter.count("bytes_read", 5)
    ...     meter.count("bytes_read", 5)
    >>> meter.report.counts, meter.report.node
    ({'bytes_read': 10}, '10.0.0.1')
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._free_since = time.perf_counter()
        # Retries are counted per process, which may have had other meters before.
        self._retries_before = retries.count()
        self.report = Report(node)

    @contextmanager
    def piece(self) -> Iterator[None]:
        """Measure one piece of work; afterwards `report` has its measurements."""
        began, retries_before = time.perf_counter(), retries.count()
        self.report = Report(self._node)
        yield
        now = time.perf_counter()
        self.again("storage", retries.count() - retries_before)
        self.report = Report(
            self._node,
            now - began,
            began - self._free_since,
            _peak_gpu_bytes(),
            self.report.counts,
            self.report.again,
            self.report.samples,
        )
        self._free_since = now

    def peek(self) -> Report:
        """Report on unfinished work, from the start of the meter until now."""
        seconds = time.perf_counter() - self._free_since
        storage = retries.count() - self._retries_before
        again: dict[retries.Why, int] = {"storage": storage} if storage else {}
        return Report(self._node, seconds, 0.0, _peak_gpu_bytes(), again=again)

    def count(self, name: str, number: int) -> None:
        """Add to a count of the current piece of work."""
        self.report.counts[name] = self.report.counts.get(name, 0) + number

    def again(self, why: retries.Why, times: int = 1) -> None:
        """Count retries within the current piece of work."""
        if times:
            self.report.again[why] = self.report.again.get(why, 0) + times

    @contextmanager
    def sample(self, name: str) -> Iterator[None]:
        """Context manager: add the duration of its body, by name, to the current piece of work."""
        began = time.perf_counter()
        yield
        self.observe(name, time.perf_counter() - began)

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration to the current piece of work."""
        self.report.samples.setdefault(name, []).append(seconds)


def _peak_gpu_bytes() -> int | None:
    # A worker that hasn't imported torch uses no GPU memory of torch.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())
