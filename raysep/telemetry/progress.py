"""What a person sees while a run goes on: bars on a terminal, lines elsewhere. All of it on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Without a terminal a stage says where it is at most this often.
LINE_INTERVAL_S = 5.0


class Bar:
    """The progress of one stage."""

    def __init__(self, telemetry: "Telemetry", stage: str, total: int, unit: str) -> None:
        self._telemetry, self._stage, self._total, self._unit = telemetry, stage, total, unit
        self._done, self._last_line = 0, 0.0
        self._progress: Progress | None = None
        if telemetry.console.is_terminal:
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
        """Say that `count` more are done, and what is being done."""
        self._done += count
        if self._progress is not None:
            self._progress.update(self._task, advance=count, note=escape(note) if note else "")
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL_S:
            self._last_line = now
            self._telemetry.line(self._stage, f"{self._done}/{self._total} {self._unit}  {note}".rstrip())

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


class Telemetry:
    """Lines and bars.

    Args:
        console: where they go; rich's stderr console if unset.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._start = time.monotonic()

    def line(self, stage: str, text: str) -> None:
        """One line of a stage, with the seconds since the start."""
        self.console.print(
            f"[dim]{time.monotonic() - self._start:6.1f} s[/] [bold]{stage:<9}[/] {escape(text)}",
            soft_wrap=True,
        )

    @contextmanager
    def stage(self, stage: str, total: int, unit: str) -> Iterator[Bar]:
        """A bar for the length of a block."""
        bar = Bar(self, stage, total, unit)
        try:
            yield bar
        finally:
            bar.stop()
