"""A sweep at the times of a cron expression, by a process that stays: `raysep sweep` at each of them.

One round at a time, each in a process of its own. Times that pass while a round goes on, or while nothing runs, come
down to one round afterwards. The round of a time is named after it, and what was begun is written down, so that a
restart goes on with the round that it left and never begins one twice.
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
# In UTC: in local time one hour of the year comes twice.
LABEL = "%Y-%m-%dT%H-%MZ"
RUNNING, ENDED = "running", "ended"
# How long a round has to end by itself when the schedule is stopped.
GRACE_S = 30
WAIT_S = 5
# The clock is looked at so often at least: it may be set, and stands still for nobody whose machine was suspended.
LOOK_S = 60.0
# A clock that was this far ahead when the last round was begun was wrong: its times are not waited for.
CLOCK_TOLERANCE = timedelta(days=1)
# Times of rounds to come that are shown at the start.
SHOWN = 3


class Schedule:
    """The rounds of one sweep over time.

    Args:
        sweep: whose time zone the expression is in, and whose root keeps the state.
        cron: five fields, as crontab(5) has them.
        command: runs a round, its label appended.
        telemetry: for lines and metrics.

    Raises:
        ConfigError: no cron expression, or one whose time never comes.
    """

    def __init__(self, sweep: SweepConfig, cron: str, command: Sequence[str], telemetry: Telemetry) -> None:
        from raysep.sweeps.cron import Cron

        try:
            self._cron = Cron(cron, sweep.zone)
        except ValueError as error:
            raise ConfigError([f"--cron {cron!r}: {error}"], "schedule") from None
        self._sweep, self._storage, self._command = sweep, Storage(sweep.root), list(command)
        self._telemetry = telemetry
        # A queue and no event: only its `put` may be called in a handler of signals while the same thread waits.
        self._over, self._stops = False, queue.SimpleQueue[int]()

    def run(self, rounds: int | None = None) -> None:
        """Stay until SIGTERM, Ctrl-C, or so many rounds have ended. Serves the metrics of the sweep meanwhile."""

        def stop(number: int, frame: Any) -> None:  # noqa: ARG001  (the signature of a handler)
            self._over = True
            self._stops.put(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        overdue = self.due(datetime.now(UTC))
        with exposed(self._telemetry, self._sweep.monitoring, self._sweep.name):
            if overdue is not None:
                self._telemetry.line("schedule", f"round {overdue} is due")
            self._telemetry.line("schedule", self._next_rounds(datetime.now(UTC)))
            notes.report_last(self._sweep, self._telemetry.metrics)
            left = rounds
            while left != 0 and not self._over:
                if self._turn() and left is not None:
                    left -= 1

    def _turn(self) -> bool:
        """Run the round that is due, or wait a while for one. Returns whether there was one."""
        now = datetime.now(UTC)
        try:
            # Times that passed during a round are one more round after it.
            label = self.due(now)
            if label is not None:
                self._round(label)
                return True
        except StorageError as error:
            # Storage that is away for a night must not end what stays for years.
            self._telemetry.line("schedule", f"{error}; tried again in {LOOK_S:.0f} s")
            self._wait(LOOK_S)
            return False
        self._wait(min(LOOK_S, (next(self._cron.after(now)) - now).total_seconds()))
        return False

    def _next_rounds(self, now: datetime) -> str:
        times = [moment.astimezone(self._sweep.zone) for moment in islice(self._cron.after(now), SHOWN)]
        then = f"; then at {', '.join(map(str, times[1:]))}" if times[1:] else ""
        return f"the next round is at {times[0]} ({self._sweep.timezone}){then}"

    def _wait(self, seconds: float) -> bool:
        """Wait so long, or until the schedule is told to stop. Returns whether it was."""
        with suppress(queue.Empty):
            if not self._over:
                self._stops.get(timeout=seconds)
        return self._over

    def due(self, now: datetime) -> str | None:
        """The round that has to be run now: one that was begun and not ended, or that of the last time that passed.

        A first start has nothing overdue: it waits for its first time.
        """
        state = self._state()
        if state is None:
            self._write({"round": None, "state": ENDED, "since": now.isoformat()})
            return None
        if state["state"] == RUNNING:
            return str(state["round"])
        since = datetime.fromisoformat(state["since"])
        if since > now + CLOCK_TOLERANCE:
            self._telemetry.line("schedule", f"the clock was put back: the last round was begun at {since}")
            since = now
            self._write({**state, "since": now.isoformat()})
        last = self._cron.last(since, now)
        return None if last is None else last.strftime(LABEL)

    def _round(self, label: str) -> None:
        state = self._state() or {}
        if state.get("state") != RUNNING:
            began = datetime.strptime(label, LABEL).replace(tzinfo=UTC)
            state = {"round": label, "state": RUNNING, "since": began.isoformat()}
            self._write(state)
        # A round that outlived the schedule that began it: what it leaves is done after it.
        while (other := lease.holder(self._storage)) is not None:
            self._telemetry.line("schedule", f"waiting for process {other['pid']} of {other['host']}")
            if self._wait(WAIT_S):
                return
        self._telemetry.line("schedule", f"round {label}", round=label)
        metrics = self._telemetry.metrics
        metrics.running.labels("schedule").set(1)
        code = self._ended(subprocess.Popen([*self._command, label]))
        metrics.running.labels("schedule").set(0)
        stopped = code < 0 or code == EXIT_CODE
        if self._over or stopped:
            # Told to stop, or killed: what is missing of the round is done after a restart, or at the next time.
            if not self._over:
                how = f"killed by signal {-code}" if code < 0 else "stopped"
                self._telemetry.line("schedule", f"round {label} was {how}", round=label)
                self._wait(WAIT_S)
            return
        self._write({**state, "state": ENDED, "exit_code": code})
        metrics.failed.set(int(code != 0))
        notes.report_last(self._sweep, metrics)
        ended = "done" if code == 0 else f"ended with exit code {code}"
        self._telemetry.line("schedule", f"round {label} {ended}", round=label, exit_code=code)

    def _ended(self, child: subprocess.Popen[bytes]) -> int:
        """The exit code of a round, which is ended when the schedule is told to stop."""
        while not self._over:
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
            found: dict[str, Any] = self._storage.read_json(STATE)
            return found
        return None

    def _write(self, state: dict[str, Any]) -> None:
        self._storage.write_json(STATE, state)


def command_of(path: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a round of a sweep's file; the label comes behind it."""
    return [sys.executable, "-m", "raysep", "sweep", path, *arguments, "--round"]
