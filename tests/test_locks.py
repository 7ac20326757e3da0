import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raysep import locks
from raysep.errors import RaysepError
from raysep.storage import Storage

HOLD = """
import sys, time
from raysep.locks import held
from raysep.storage import Storage
with held(Storage(sys.argv[1]), "the run"):
    print("held", flush=True)
    time.sleep(60)
"""


def places(tmp_path: Path) -> list[Storage]:
    return [Storage(str(tmp_path / "run")), Storage(f"memory://{tmp_path}")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.05)


def test_one_at_a_time_on_any_file_system(tmp_path: Path, quick: None):
    for storage in places(tmp_path):
        with locks.held(storage, "the run"):
            with (
                pytest.raises(RaysepError, match=rf"the run is being worked on by process {os.getpid()} of .*, since"),
                locks.held(storage, "the run"),
            ):
                pass
            # The one that was refused took nothing away.
            assert storage.is_file(locks.FILE)
        assert not storage.exists(locks.FILE)
        with locks.held(storage, "the run"):
            pass


def test_a_holder_that_was_killed_is_seen_at_once_where_it_ran(tmp_path: Path):
    storage = Storage(str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RaysepError, match=f"process {process.pid}"), locks.held(storage, "the run"):
            pass
        process.kill()
    with locks.held(storage, "the run"):
        pass


def test_a_holder_elsewhere_is_believed_until_its_lease_ends(tmp_path: Path, quick: None):
    for storage in places(tmp_path):
        lease = {"id": "x", "host": "elsewhere", "pid": 1, "since": "then", "until": time.time() + 30}
        storage.write_bytes(locks.FILE, json.dumps(lease).encode())
        with pytest.raises(RaysepError, match="process 1 of elsewhere, since then"), locks.held(storage, "the run"):
            pass
        storage.write_bytes(locks.FILE, json.dumps({**lease, "until": time.time() - 1}).encode())
        with locks.held(storage, "the run"):
            pass


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "LEASE_S", 0.4)
    storage = Storage(str(tmp_path))
    with locks.held(storage, "the run"):
        first = storage.read_json(locks.FILE)["until"]
        time.sleep(0.5)
        assert storage.read_json(locks.FILE)["until"] > first


def test_of_many_that_come_at_once_one_has_it(tmp_path: Path):
    stale = {"id": "gone", "host": "elsewhere", "pid": 1, "since": "then", "until": 0}
    for attempt in range(20):
        storage = Storage(str(tmp_path / str(attempt)))
        storage.write_bytes(locks.FILE, json.dumps(stale).encode())
        inside, most, refused = [0], [0], [0]
        gate = threading.Barrier(4)

        def come(storage: Storage = storage, inside=inside, most=most, refused=refused, gate=gate) -> None:
            gate.wait()
            try:
                with locks.held(storage, "the run"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.02)
                    inside[0] -= 1
            except RaysepError:
                refused[0] += 1

        threads = [threading.Thread(target=come) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most[0] == 1
        assert refused[0] < 4


def test_a_holder_that_stood_still_too_long_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "LEASE_S", 0.4)
    storage = Storage(str(tmp_path))
    other = {"id": "other", "host": "elsewhere", "pid": 1, "since": "now", "until": time.time() + 60}
    with locks.held(storage, "the run"):
        storage.write_bytes(locks.FILE, json.dumps(other).encode())
        time.sleep(0.3)
    assert storage.read_json(locks.FILE) == other


def test_a_directory_that_was_made_for_the_lock_alone_goes_with_it(tmp_path: Path):
    with locks.held(Storage(str(tmp_path / "run")), "the run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_that_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(RaysepError, match="can't be written to"),
        locks.held(Storage(f"{tmp_path}/file/run"), "the run"),
    ):
        pass


def test_another_process_with_the_old_pid_is_not_the_holder(tmp_path: Path):
    storage = Storage(str(tmp_path))
    with locks.held(storage, "the run"):
        lease = storage.read_json(locks.FILE)
    storage.write_bytes(locks.FILE, json.dumps({**lease, "started": "0"}).encode())
    with locks.held(storage, "the run"):
        pass
