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
from datetime import datetime, timedelta
from typing import Any

from raysep import locks
from raysep.errors import ConfigError
from raysep.storage import Storage
from raysep.sweeps.config import SweepConfig
from raysep.telemetry import Telemetry

STATE = "schedule.json"
LABEL = "%Y-%m-%dT%H-%M"
RUNNING, ENDED = "running", "ended"
# How long a round has to end by itself when the schedule is stopped.
GRACE_S = 30
WAIT_S = 5


class Schedule:
    """The rounds of one sweep over time.

    Args:
        sweep: whose time zone the expression is in, and whose root keeps the state.
        cron: five fields: minute, hour, day of month, month, day of week.
        command: runs a round, its label appended.
        telemetry: for lines.

    Raises:
        ConfigError: no cron expression.
    """

    def __init__(self, sweep: SweepConfig, cron: str, command: Sequence[str], telemetry: Telemetry) -> None:
        from apscheduler.triggers.cron import CronTrigger

        try:
            self._trigger = CronTrigger.from_crontab(cron, timezone=sweep.zone)
        except ValueError as error:
            raise ConfigError(
                [f"--cron {cron!r}: {error}; expected five fields, as in '0 3 * * *'"], "schedule"
            ) from None
        self._zone, self._storage, self._command = sweep.zone, Storage(sweep.root), list(command)
        self._telemetry = telemetry
        self._child: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()

    def run(self, rounds: int | None = None) -> None:
        """Stay until SIGTERM, Ctrl-C, or so many rounds have ended."""
        from apscheduler.schedulers.blocking import BlockingScheduler

        # It warns of each time that passes while a round goes on, as is meant here.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        scheduler = BlockingScheduler(timezone=self._zone)
        left = rounds

        def fire() -> None:
            nonlocal left
            # Times that passed during a round are one more round after it.
            while left != 0 and not self._over.is_set() and (label := self.due(datetime.now(self._zone))) is not None:
                self._round(label)
                left = None if left is None else left - 1
            if left == 0:
                scheduler.shutdown(wait=False)

        def stop(number: int, frame: Any) -> None:  # noqa: ARG001  (the signature of a handler)
            self._telemetry.line("schedule", "stopping")
            self._over.set()
            if self._child is not None:
                self._child.terminate()
            scheduler.shutdown(wait=False)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        now = datetime.now(self._zone)
        overdue = self.due(now)
        first = now if overdue is not None else self._trigger.get_next_fire_time(None, now)
        self._telemetry.line("schedule", f"round {overdue} is due" if overdue else f"the next round is at {first}")
        scheduler.add_job(
            fire, self._trigger, coalesce=True, max_instances=1, misfire_grace_time=None, next_run_time=first
        )
        scheduler.start()
        if self._child is not None:
            try:
                self._child.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._child.kill()

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
        last = None
        moment = self._trigger.get_next_fire_time(None, since + timedelta(microseconds=1))
        while moment is not None and moment <= now:
            last = moment
            moment = self._trigger.get_next_fire_time(None, moment + timedelta(microseconds=1))
        return None if last is None else last.strftime(LABEL)

    def _round(self, label: str) -> None:
        state = self._state() or {}
        if state.get("state") != RUNNING:
            began = datetime.strptime(label, LABEL).replace(tzinfo=self._zone)
            state = {"round": label, "state": RUNNING, "since": began.isoformat()}
            self._write(state)
        # A round that outlived the schedule that began it: what it leaves is done after it.
        while (other := locks.holder(self._storage)) is not None:
            self._telemetry.line("schedule", f"waiting for process {other['pid']} of {other['host']}")
            if self._over.wait(WAIT_S):
                return
        self._telemetry.line("schedule", f"round {label}", round=label)
        self._child = subprocess.Popen([*self._command, label])
        code = self._child.wait()
        self._child = None
        if self._over.is_set():
            # It was told to stop: what is missing of the round is done after the restart.
            return
        self._write({**state, "state": ENDED, "exit_code": code})
        ended = "done" if code == 0 else f"ended with exit code {code}"
        self._telemetry.line("schedule", f"round {label} {ended}", round=label, exit_code=code)

    def _state(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._storage.read_json(STATE)
        except FileNotFoundError:
            return None
        return found

    def _write(self, state: dict[str, Any]) -> None:
        self._storage.write_json(STATE, state)


def command_of(path: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a round of a sweep's file; the label comes behind it."""
    return [sys.executable, "-m", "raysep", "sweep", path, *arguments, "--round"]
