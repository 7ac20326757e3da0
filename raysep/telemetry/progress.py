"""Progress of a run on stderr: bars on a terminal, lines elsewhere."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raysep.errors import printable
from raysep.storage.retries import Why
from raysep.telemetry.journal import Journal
from raysep.telemetry.prometheus import Metrics
from raysep.telemetry.worker_stats import Report

# Minimum interval of a stage's progress lines without a terminal.
LINE_INTERVAL_S = 5.0
LogFormat = Literal["text", "json"]


class Bar:
    """Progress bar of one stage."""

    def __init__(self, telemetry: "Telemetry", stage: str, total: int, unit: str) -> None:
        self._telemetry, self._stage, self._total, self._unit = telemetry, stage, total, unit
        self._done, self._last_line = 0, 0.0
        self._progress: Progress | None = None
        self._began = time.monotonic()
        self._update_metrics()
        if telemetry.console.is_terminal and telemetry.log_format == "text":
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                console=telemetry.console,
                transient=True,
            )
            self._task = self._progress.add_task(f"{stage:<9}", total=total, note="")
            self._progress.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` to the finished work; `note` describes the current work."""
        self._done += count
        self._update_metrics()
        if self._progress is not None:
            self._progress.update(self._task, advance=count, note=escape(note) if note else "")
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL_S:
            self._last_line = now
            self._telemetry.line(self._stage, f"{self._done}/{self._total} {self._unit}  {note}".rstrip())

    def stop(self) -> None:
        """Remove the bar."""
        self._telemetry.metrics.stage_seconds.labels(self._stage).set(time.monotonic() - self._began)
        if self._progress is not None:
            self._progress.stop()

    def _update_metrics(self) -> None:
        metrics = self._telemetry.metrics
        metrics.progress.labels(self._stage).set(self._done / self._total if self._total else 1.0)
        metrics.progress_time.set_to_current_time()
        metrics.stage_seconds.labels(self._stage).set(time.monotonic() - self._began)


class Telemetry:
    """Progress lines, bars, log and metrics of one run or sweep.

    Args:
        console: for lines and bars; stderr if unset.
        log_format: `json` prints each line as a JSON object, as in the log file.

    Attributes:
        node_work: pieces of work and worker seconds, by stage and node.
        retries: number of retries, by stage and cause.
    """

    def __init__(self, console: Console | None = None, log_format: LogFormat = "text") -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.log_format = log_format
        self.journal, self.metrics = Journal(), Metrics()
        self.node_work: dict[str, dict[str, dict[str, float]]] = {}
        self.retries: dict[str, Counter[Why]] = {}
        self._start = time.monotonic()

    def line(self, stage: str, text: str, **fields: Any) -> None:
        """Print and log one line of a stage, with the seconds since the start."""
        if self.log_format == "json":
            self.event(stage, text, **fields)
            return
        self._log(stage, text, fields)
        self.console.print(
            f"[dim]{time.monotonic() - self._start:6.1f} s[/] [bold]{stage:<9}[/] {escape(printable(text))}",
            soft_wrap=True,
        )

    def event(self, stage: str, text: str, **fields: Any) -> None:
        """Log an event too detailed for the terminal: of a layer, a shard set or a trial."""
        event = self._log(stage, text, fields)
        if self.log_format == "json":
            self.console.print(json.dumps(event, ensure_ascii=False, default=str), markup=False, soft_wrap=True)

    def worked(self, stage: str, report: Report, model: str) -> None:
        """Add a worker's report to the metrics and to the work of its node."""
        self.metrics.absorb(stage, report, model)
        for why, times in report.again.items():
            self.retried(stage, why, times)
        entry = self.node_work.setdefault(stage, {}).setdefault(report.node, {"pieces": 0, "seconds": 0.0})
        entry["pieces"] += 1
        entry["seconds"] += round(report.seconds, 3)

    def retried(self, stage: str, why: Why, times: int = 1) -> None:
        """Count retries of a stage."""
        self.metrics.retries.labels(stage, why).inc(times)
        self.retries.setdefault(stage, Counter())[why] += times

    @contextmanager
    def stage(self, stage: str, total: int, unit: str) -> Iterator[Bar]:
        """Show a bar for the duration of a `with` block."""
        bar = Bar(self, stage, total, unit)
        try:
            yield bar
        finally:
            bar.stop()
            self.journal.save()

    def _log(self, stage: str, text: str, fields: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        elapsed = round(time.monotonic() - self._start, 3)
        event = {"at": now, "elapsed_s": elapsed, "stage": stage, **fields, "message": text}
        self.journal.add(event)
        return event
