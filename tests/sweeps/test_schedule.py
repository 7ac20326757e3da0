import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysep.errors import ConfigError
from raysep.storage import lease
from raysep.storage.store import Storage
from raysep.sweeps.config import SweepConfig
from raysep.sweeps.schedule import Schedule
from raysep.telemetry import Telemetry
from tests.sweeps.test_cells import MODELS, sweep

NOON = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
# Replaces `raysep sweep`: writes the label of the round to a file, then sleeps.
ROUND = "import sys, time; open(sys.argv[1], 'a').write(sys.argv[3] + '\\n'); time.sleep(float(sys.argv[2]))"


def schedule(tmp_path: Path, cron: str = "* * * * *", seconds: float = 0, **sections: Any) -> Schedule:
    config: SweepConfig = sweep(root=str(tmp_path), **sections)
    command = [sys.executable, "-c", ROUND, str(tmp_path / "rounds.txt"), str(seconds)]
    return Schedule(config, cron, command, Telemetry())


def rounds(tmp_path: Path) -> list[str]:
    file = tmp_path / "rounds.txt"
    return file.read_text().split() if file.exists() else []


def test_no_round_is_due_on_the_first_start(tmp_path: Path) -> None:
    scheduler = schedule(tmp_path)
    assert scheduler.due(NOON) is None
    assert scheduler.due(NOON + timedelta(seconds=20)) is None
    assert scheduler.due(NOON + timedelta(seconds=30)) == "2026-11-24T12-01Z"


def test_missed_times_become_one_round(tmp_path: Path) -> None:
    scheduler = schedule(tmp_path)
    scheduler.due(NOON)
    label = scheduler.due(NOON + timedelta(hours=2))
    assert label == "2026-11-24T14-00Z"
    scheduler._run_round(label)
    assert rounds(tmp_path) == [label]
    # After that round nothing is due until the next time.
    assert schedule(tmp_path).due(NOON + timedelta(hours=2, seconds=20)) is None
    assert schedule(tmp_path).due(NOON + timedelta(hours=2, seconds=30)) == "2026-11-24T14-01Z"


def test_times_are_those_of_the_sweeps_zone(tmp_path: Path) -> None:
    scheduler = schedule(tmp_path, "0 3 * * *", timezone="Asia/Tokyo")
    scheduler.due(NOON)
    # 03:00 in Tokyo is 18:00 UTC of the day before.
    assert scheduler.due(datetime(2026, 11, 24, 17, 59, tzinfo=UTC)) is None
    assert scheduler.due(datetime(2026, 11, 24, 18, 1, tzinfo=UTC)) == "2026-11-24T18-00Z"


@pytest.mark.parametrize("cron", ["", "* * * *", "61 * * * *", "daily", "0 3 * * 8"])
def test_invalid_cron_expressions_are_refused(tmp_path: Path, cron: str) -> None:
    with pytest.raises(ConfigError, match=r"expected five fields, as in '0 3 \* \* \*'"):
        schedule(tmp_path, cron)


SCHEDULER = """
import sys
from raysep.sweeps.schedule import Schedule
from raysep.sweeps.config import SweepConfig
from raysep.telemetry import Telemetry
sweep = SweepConfig.model_validate({"root": sys.argv[1], "base": {}, "matrix": {}, "monitoring": {"port": None}})
command = [sys.executable, "-c", sys.argv[2], sys.argv[1] + "/rounds.txt", sys.argv[3]]
Schedule(sweep, "* * * * *", command, Telemetry()).run(int(sys.argv[4]) or None)
"""


def start(tmp_path: Path, seconds: float, count: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCHEDULER, str(tmp_path), ROUND, str(seconds), str(count)])


def wait_for_rounds(tmp_path: Path, count: int) -> None:
    for _ in range(150):
        if len(rounds(tmp_path)) >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"expected {count} rounds, got {rounds(tmp_path)}")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_scheduler_resumes_the_interrupted_round(tmp_path: Path, how: signal.Signals) -> None:
    # A round is due at once: the last start was two hours ago.
    past = datetime.now(UTC) - timedelta(hours=2)
    schedule(tmp_path).due(past)
    process = start(tmp_path, 60)
    wait_for_rounds(tmp_path, 1)
    process.send_signal(how)
    process.wait(20)
    if how == signal.SIGKILL:
        # The round outlives the scheduler; waiting for its lease is tested elsewhere.
        (orphan,) = subprocess.run(
            ["pgrep", "-f", str(tmp_path / "rounds.txt")], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(orphan), signal.SIGKILL)
    with start(tmp_path, 0, 1) as again:
        assert again.wait(30) == 0
    first, second = rounds(tmp_path)
    # The same label, so that finished cells are not run again.
    assert first == second


def test_the_command_validates_the_cells_first(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"root": str(tmp_path), "base": {}, "matrix": {"models": MODELS}}))
    command = [sys.executable, "-m", "raysep", "schedule", str(file), "--cron", "0 3 * * *"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 2
    assert "test_resnet: data: " in done.stderr


def test_a_round_waits_for_the_lease_of_an_orphaned_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysep.sweeps.schedule.WAIT_S", 0.05)
    scheduler = schedule(tmp_path)
    scheduler.due(NOON)
    with lease.held(Storage(str(tmp_path)), "the sweep"):
        waiting = threading.Thread(target=scheduler._run_round, args=("2026-11-24T12-01Z",))
        waiting.start()
        time.sleep(0.3)
        assert rounds(tmp_path) == []
    waiting.join(20)
    assert rounds(tmp_path) == ["2026-11-24T12-01Z"]


def test_a_killed_round_is_due_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysep.sweeps.schedule.WAIT_S", 0.05)
    scheduler = schedule(tmp_path)
    scheduler.due(NOON)
    scheduler._command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    scheduler._run_round("2026-11-24T12-01Z")
    assert schedule(tmp_path).due(NOON) == "2026-11-24T12-01Z"
    scheduler._command = [sys.executable, "-c", "import sys; sys.exit(1)"]
    scheduler._run_round("2026-11-24T12-01Z")
    # A failed round is not due again.
    assert schedule(tmp_path).due(NOON + timedelta(seconds=31)) is None


@pytest.mark.parametrize("cron", ["0 3 31 2 *", "0 0 30 feb */2"])
def test_expressions_without_a_date_are_refused(tmp_path: Path, cron: str) -> None:
    with pytest.raises(ConfigError, match="no date matches"):
        schedule(tmp_path, cron)
    assert list(tmp_path.iterdir()) == []


def test_upcoming_rounds_are_logged_in_the_sweeps_zone(tmp_path: Path) -> None:
    scheduler = schedule(tmp_path, "0 3 * * *", timezone="Europe/Berlin")
    assert scheduler._next_rounds(datetime(2026, 10, 23, 12, tzinfo=UTC)) == (
        "the next round is at 2026-10-24 03:00:00+02:00 (Europe/Berlin); then at 2026-10-25 03:00:00+01:00, "
        "2026-10-26 03:00:00+01:00"
    )


def test_a_clock_that_was_set_back_delays_no_round(tmp_path: Path) -> None:
    schedule(tmp_path).due(NOON.replace(year=2036))
    scheduler = schedule(tmp_path)
    assert scheduler.due(NOON) is None
    assert scheduler.due(NOON + timedelta(seconds=31)) == "2026-11-24T12-01Z"


def test_a_year_of_missed_times_is_one_round_and_fast(tmp_path: Path) -> None:
    scheduler = schedule(tmp_path)
    scheduler.due(NOON - timedelta(days=365))
    began = time.monotonic()
    assert scheduler.due(NOON) == "2026-11-24T12-00Z"
    assert time.monotonic() - began < 2


def test_the_scheduler_survives_storage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysep.sweeps.schedule.POLL_S", 0.01)
    scheduler = schedule(tmp_path)
    scheduler.due(datetime.now(UTC) - timedelta(hours=2))
    state = (tmp_path / "schedule.json").read_text()
    (tmp_path / "schedule.json").write_text(state[:10])
    assert not scheduler._run_or_wait()
    (tmp_path / "schedule.json").write_text(state)
    assert scheduler._run_or_wait()
    assert len(rounds(tmp_path)) == 1
