"""A sweep at the times of a cron expression, by a process that stays: APScheduler around `raysep sweep`.

One round at a time, each in a process of its own. Times that pass while a round goes on, or while nothing runs, come
down to one round afterwards. The round of a time is named after it, and what was begun is written down, so that a
restart goes on with the round that it left and never begins one twice.
"""

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from raysep import locks
from raysep.errors import ConfigError
from raysep.interrupts import EXIT_CODE
from raysep.storage import Storage
from raysep.sweeps import rounds as sweep_rounds
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


class Schedule:
    """The rounds of one sweep over time.

    Args:
        sweep: whose time zone the expression is in, and whose root keeps the state.
        cron: five fields, as crontab(5) has them.
        command: runs a round, its label appended.
        telemetry: for lines and metrics.

    Raises:
        ConfigError: no cron expression.
    """

    def __init__(self, sweep: SweepConfig, cron: str, command: Sequence[str], telemetry: Telemetry) -> None:
        from raysep.sweeps.cron import Cron

        try:
            self._cron = Cron(cron, sweep.zone)
        except ValueError as error:
            problem = f"--cron {cron!r}: {error}; expected five fields, as in '0 3 * * *'"
            raise ConfigError([problem], "schedule") from None
        self._sweep, self._storage, self._command = sweep, Storage(sweep.root), list(command)
        self._telemetry = telemetry
        self._child: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()

    def run(self, rounds: int | None = None) -> None:
        """Stay until SIGTERM, Ctrl-C, or so many rounds have ended. Serves the metrics of the sweep meanwhile."""
        from apscheduler.schedulers.background import BackgroundScheduler

        # It warns of each time that passes while a round goes on, as is meant here.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        scheduler = BackgroundScheduler(timezone=UTC)
        left = rounds

        def fire() -> None:
            nonlocal left
            # Times that passed during a round are one more round after it.
            while left != 0 and not self._over.is_set() and (label := self.due(datetime.now(UTC))) is not None:
                self._round(label)
                left = None if left is None else left - 1
            if left == 0:
                self._over.set()

        def stop(number: int, frame: Any) -> None:  # noqa: ARG001  (the signature of a handler)
            self._over.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        now = datetime.now(UTC)
        overdue = self.due(now)
        first = now if overdue is not None else self._cron.get_next_fire_time(None, now)
        shown = first.astimezone(self._sweep.zone) if first is not None else "never"
        with exposed(self._telemetry, self._sweep.metrics, self._sweep.name):
            self._telemetry.line("schedule", f"round {overdue} is due" if overdue else f"the next round is at {shown}")
            sweep_rounds.report_last(self._sweep, self._telemetry.metrics)
            options = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None, "next_run_time": first}
            scheduler.add_job(fire, self._cron, **options)
            scheduler.start()
            while not self._over.wait(1):
                continue
            self._stop_child()
            scheduler.shutdown(wait=True)

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
        passed = takewhile(lambda moment: moment <= now, self._cron.after(datetime.fromisoformat(state["since"])))
        last = None
        for moment in passed:
            last = moment
        return None if last is None else last.strftime(LABEL)

    def _round(self, label: str) -> None:
        state = self._state() or {}
        if state.get("state") != RUNNING:
            began = datetime.strptime(label, LABEL).replace(tzinfo=UTC)
            state = {"round": label, "state": RUNNING, "since": began.isoformat()}
            self._write(state)
        # A round that outlived the schedule that began it: what it leaves is done after it.
        while (other := locks.holder(self._storage)) is not None:
            self._telemetry.line("schedule", f"waiting for process {other['pid']} of {other['host']}")
            if self._over.wait(WAIT_S):
                return
        self._telemetry.line("schedule", f"round {label}", round=label)
        metrics = self._telemetry.metrics
        metrics.running.labels("schedule").set(1)
        self._child = subprocess.Popen([*self._command, label])
        if self._over.is_set():
            self._child.terminate()
        code = self._child.wait()
        metrics.running.labels("schedule").set(0)
        stopped = code < 0 or code == EXIT_CODE
        if self._over.is_set() or stopped:
            # Told to stop, or killed: what is missing of the round is done after a restart, or at the next time.
            if stopped and not self._over.is_set():
                how = f"killed by signal {-code}" if code < 0 else "stopped"
                self._telemetry.line("schedule", f"round {label} was {how}", round=label)
                self._over.wait(WAIT_S)
            return
        self._write({**state, "state": ENDED, "exit_code": code})
        metrics.failed.set(int(code != 0))
        sweep_rounds.report_last(self._sweep, metrics)
        ended = "done" if code == 0 else f"ended with exit code {code}"
        self._telemetry.line("schedule", f"round {label} {ended}", round=label, exit_code=code)

    def _stop_child(self) -> None:
        child = self._child
        if child is None or child.poll() is not None:
            return
        self._telemetry.line("schedule", "stopping")
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()

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
