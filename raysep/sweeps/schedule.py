"""A long-running scheduler of one sweep: it runs `raysep sweep` at the times of a cron expression.

Rounds run one at a time, in subprocesses. Times missed during a round or while the scheduler is down become one round.
The label of a round is its time, and a state file records each start, so that a restarted scheduler resumes an
interrupted round and never starts a round twice.
"""

import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from raysep.errors import ConfigError, StorageError
from raysep.process.signals import EXIT_CODE
from raysep.storage import lease
from raysep.storage.store import Storage
from raysep.sweeps import notes
from raysep.sweeps.config import SweepConfig
from raysep.telemetry import Telemetry
from raysep.telemetry.exposition import exposed

STATE = "schedule.json"
# In UTC, as one local hour per year occurs twice.
LABEL = "%Y-%m-%dT%H-%MZ"
RUNNING, ENDED = "running", "ended"
# Seconds from SIGTERM to SIGKILL for a round when the scheduler is stopped.
GRACE_S = 30
# Seconds between queries of the lease, and after a killed round.
WAIT_S = 5
# Longest sleep: the clock may be set, or the machine suspended.
POLL_S = 60.0
# A last start further in the future than this came from a wrong clock, and is ignored.
CLOCK_TOLERANCE = timedelta(days=1)
# Number of upcoming rounds in the first log line.
UPCOMING = 3


class Schedule:
    """The scheduler of one sweep.

    Args:
        sweep: its time zone applies to the expression, its root holds the state file.
        cron: five fields as in crontab(5).
        command: runs a round, with the round's label appended.

    Raises:
        ConfigError: the cron expression is invalid, or no date matches it.
    """

    def __init__(self, sweep: SweepConfig, cron: str, command: Sequence[str], telemetry: Telemetry) -> None:
        from raysep.sweeps.cron import Cron

        try:
            self._cron = Cron(cron, sweep.zone)
        except ValueError as error:
            raise ConfigError([f"--cron {cron!r}: {error}"], "schedule") from None
        self._sweep, self._storage, self._command = sweep, Storage(sweep.root), list(command)
        self._telemetry = telemetry
        # Not an Event: only SimpleQueue.put is reentrant, for a signal handler in the waiting thread.
        self._stopping, self._signals = False, queue.SimpleQueue[int]()

    def run(self, rounds: int | None = None) -> None:
        """Run rounds until SIGTERM, Ctrl-C or the end of the given number of rounds; serve the metrics of the sweep."""

        def stop(number: int, frame: Any) -> None:  # noqa: ARG001  (the signature of a handler)
            self._stopping = True
            self._signals.put(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        overdue = self.due(datetime.now(UTC))
        with exposed(self._telemetry, self._sweep.monitoring, self._sweep.name):
            if overdue is not None:
                self._telemetry.line("schedule", f"round {overdue} is due")
            self._telemetry.line("schedule", self._next_rounds(datetime.now(UTC)))
            notes.publish_last(self._sweep, self._telemetry.metrics)
            remaining = rounds
            while remaining != 0 and not self._stopping:
                if self._run_or_wait() and remaining is not None:
                    remaining -= 1

    def _run_or_wait(self) -> bool:
        """Run the round that is due, or sleep up to `POLL_S`. Returns whether a round was due."""
        now = datetime.now(UTC)
        try:
            label = self.due(now)
            if label is not None:
                self._run_round(label)
                return True
        except StorageError as error:
            # An outage of the storage must not end the scheduler.
            self._telemetry.line("schedule", f"{error}; next attempt in {POLL_S:.0f} s")
            self._wait(POLL_S)
            return False
        self._wait(min(POLL_S, (next(self._cron.after(now)) - now).total_seconds()))
        return False

    def _next_rounds(self, now: datetime) -> str:
        times = [moment.astimezone(self._sweep.zone) for moment in islice(self._cron.after(now), UPCOMING)]
        then = f"; then at {', '.join(map(str, times[1:]))}" if times[1:] else ""
        return f"the next round is at {times[0]} ({self._sweep.timezone}){then}"

    def _wait(self, seconds: float) -> bool:
        """Sleep, or return early on a signal. Returns whether the scheduler is stopping."""
        with suppress(queue.Empty):
            if not self._stopping:
                self._signals.get(timeout=seconds)
        return self._stopping

    def due(self, now: datetime) -> str | None:
        """The label of the round to run now: an interrupted round, or the last missed time; None if no round is due.

        On the first start no time counts as missed.
        """
        state = self._state()
        if state is None:
            self._write({"round": None, "state": ENDED, "since": now.isoformat()})
            return None
        if state["state"] == RUNNING:
            return str(state["round"])
        since = datetime.fromisoformat(state["since"])
        if since > now + CLOCK_TOLERANCE:
            self._telemetry.line("schedule", f"the clock was set back: the last round started later, at {since}")
            since = now
            self._write({**state, "since": now.isoformat()})
        last = self._cron.last(since, now)
        return None if last is None else last.strftime(LABEL)

    def _run_round(self, label: str) -> None:
        state = self._state() or {}
        if state.get("state") != RUNNING:
            since = datetime.strptime(label, LABEL).replace(tzinfo=UTC)
            state = {"round": label, "state": RUNNING, "since": since.isoformat()}
            self._write(state)
        # A round may have outlived an earlier scheduler: run the cells that it leaves pending.
        while (holder := lease.holder(self._storage)) is not None:
            self._telemetry.line("schedule", f"waiting for the lease of process {holder['pid']} on {holder['host']}")
            if self._wait(WAIT_S):
                return
        self._telemetry.line("schedule", f"round {label}", round=label)
        metrics = self._telemetry.metrics
        metrics.running.labels("schedule").set(1)
        code = self._wait_for(subprocess.Popen([*self._command, label]))
        metrics.running.labels("schedule").set(0)
        stopped = code < 0 or code == EXIT_CODE
        if self._stopping or stopped:
            # The state stays RUNNING: a restart or the next attempt resumes the round.
            if not self._stopping:
                how = f"killed by signal {-code}" if code < 0 else "stopped"
                self._telemetry.line("schedule", f"round {label} was {how}", round=label)
                self._wait(WAIT_S)
            return
        self._write({**state, "state": ENDED, "exit_code": code})
        metrics.failed.set(int(code != 0))
        notes.publish_last(self._sweep, metrics)
        ended = "done" if code == 0 else f"ended with exit code {code}"
        self._telemetry.line("schedule", f"round {label} {ended}", round=label, exit_code=code)

    def _wait_for(self, child: subprocess.Popen[bytes]) -> int:
        """Wait for a round, or terminate it if the scheduler is stopping; return its exit code."""
        while not self._stopping:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(1)
        self._telemetry.line("schedule", "stopping")
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            return child.wait(GRACE_S)
        child.kill()
        return child.wait()

    def _state(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            state: dict[str, Any] = self._storage.read_json(STATE)
            return state
        return None

    def _write(self, state: dict[str, Any]) -> None:
        self._storage.write_json(STATE, state)


def command_of(path: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a round of a sweep file; the caller appends the label."""
    return [sys.executable, "-m", "raysep", "sweep", path, *arguments, "--round"]
