"""What a worker measures of itself, and hands to the driver together with its results.

The driver counts a report when it has the results, so a worker that dies takes no count with it, and work that is
done again is counted once.
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
    """One piece of work.

    Attributes:
        node: address of the node that did it.
        seconds: that it took.
        waited_s: how long the worker had been without work before it.
        peak_gpu_bytes: of torch's allocator since the worker's start; None without a GPU.
        counts: of what happened, by name: `bytes_read`, `bytes_written`, `kmeans_iterations`.
        again: how often something was begun again, by why.
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
        """As `Report(**plain)` takes it back."""
        return asdict(self)


class Meter:
    """Times the pieces of work of one process.

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
        # A process may have meters one after another.
        self._retries_before = retries.count()
        self.report = Report(node)

    @contextmanager
    def piece(self) -> Iterator[None]:
        """One piece of work; its report is there afterwards."""
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
        """Of work that goes on: from the start of the meter until now."""
        seconds = time.perf_counter() - self._free_since
        own = retries.count() - self._retries_before
        again: dict[retries.Why, int] = {"storage": own} if own else {}
        return Report(self._node, seconds, 0.0, _peak_gpu_bytes(), again=again)

    def count(self, name: str, number: int) -> None:
        """Add to a count of the piece at hand."""
        self.report.counts[name] = self.report.counts.get(name, 0) + number

    def again(self, why: retries.Why, times: int = 1) -> None:
        """Say that something of the piece at hand was begun again."""
        if times:
            self.report.again[why] = self.report.again.get(why, 0) + times

    @contextmanager
    def sample(self, name: str) -> Iterator[None]:
        """Time a block of the piece at hand."""
        began = time.perf_counter()
        yield
        self.observe(name, time.perf_counter() - began)

    def observe(self, name: str, seconds: float) -> None:
        """Add a duration of the piece at hand."""
        self.report.samples.setdefault(name, []).append(seconds)


def _peak_gpu_bytes() -> int | None:
    # A worker that never imported torch has used none of its memory.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())
