import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raysep.errors import RaysepError, StorageError
from raysep.process import identity
from raysep.storage import lease
from raysep.storage.store import LEASES, Storage

HOLD = """
import sys, time
from raysep.process import signals
from raysep.storage import lease
from raysep.storage.store import Storage
lease.LEASE_S = float(sys.argv[2])
with signals.caught(), lease.held(Storage(sys.argv[1]), "the run"):
    print("held", flush=True)
    time.sleep(60)
"""


def stores(tmp_path: Path) -> list[Storage]:
    return [Storage(str(tmp_path / "run")), Storage(f"memory://{tmp_path}")]


def write_claim(storage: Storage, seconds_ago: float = 0.0) -> str:
    """Write a lease file as another machine did some time ago; returns its path."""
    path = f"{LEASES}/elsewhere.json"
    at = time.time() - seconds_ago
    content = {"id": "elsewhere", "host": "elsewhere", "pid": 1, "pids": "", "started": "", "since": "2026", "at": at}
    storage.write_json(path, content)
    if storage.is_local:
        os.utime(Path(storage.root, path), (at, at))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 0.3)


def test_one_process_at_a_time_holds_the_lease_on_any_file_system(tmp_path: Path, quick: None) -> None:
    for storage in stores(tmp_path):
        with lease.held(storage, "the run"):
            with (
                pytest.raises(RaysepError, match=rf"the run is locked by process {os.getpid()} on .*, since"),
                lease.held(storage, "the run"),
            ):
                pass
            # The refused process has deleted only its own lease file.
            assert len(storage.files(LEASES)) == 1
            assert lease.holder(storage) is not None
        assert not storage.files(LEASES)
        assert lease.holder(storage) is None
        with lease.held(storage, "the run"):
            pass


def test_a_killed_holder_is_detected_at_once_on_the_same_machine(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "120"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RaysepError, match=f"process {process.pid}"), lease.held(storage, "the run"):
            pass
        process.kill()
    with lease.held(storage, "the run"):
        pass


def test_a_lease_of_another_machine_is_valid_until_it_expires(tmp_path: Path, quick: None) -> None:
    for storage in stores(tmp_path):
        write_claim(storage, lease.LEASE_S - 30)
        with pytest.raises(RaysepError, match="process 1 on elsewhere, since 2026"), lease.held(storage, "the run"):
            pass
        stale = write_claim(storage, lease.LEASE_S + 1)
        assert lease.holder(storage) is None
        with lease.held(storage, "the run"):
            assert not storage.exists(stale)


def test_clocks_of_machines_may_differ(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only modification times of the file system count, not the clock of the holder or of another process."""
    storage = Storage(str(tmp_path))
    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setattr(identity, "start_time", lambda pid: "other")
    write_claim(storage, 0)
    os.utime(tmp_path / LEASES / "elsewhere.json")
    with pytest.raises(RaysepError, match="elsewhere"), lease.held(storage, "the run"):
        pass


def test_without_proc_only_the_age_of_the_lease_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    monkeypatch.setattr(identity, "pid_namespace", lambda: identity.UNKNOWN)
    monkeypatch.setattr(identity, "start_time", lambda pid: None)
    with lease.held(storage, "the run"):
        (mine,) = storage.files(LEASES)
        with pytest.raises(RaysepError), lease.held(storage, "the run"):
            pass
        # Restored below with an old time, as if the holder had been killed long ago.
        content = storage.read_bytes(mine)
    storage.write_bytes(mine, content)
    os.utime(tmp_path / mine, (0, 0))
    with lease.held(storage, "the run"):
        pass


def test_unreadable_lease_files_are_ignored(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for number, content in enumerate((b"", b"{", b"[]", b'{"id": "x"}')):
        storage.write_bytes(f"{LEASES}/{number}.json", content)
    with lease.held(storage, "the run"):
        pass


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    storage = Storage(str(tmp_path))
    with lease.held(storage, "the run"):
        ((path, first),) = storage.times(LEASES).items()
        time.sleep(0.5)
        assert storage.times(LEASES)[path] > first


def race(root: str) -> tuple[int, int]:
    """Four threads acquire a lease at once: the maximum of concurrent holders, and the number of holders."""
    inside, most, had = [0], [0], [0]
    gate = threading.Barrier(4)

    def acquire() -> None:
        storage = Storage(root)
        gate.wait()
        with contextlib.suppress(RaysepError), lease.held(storage, "the run"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            had[0] += 1
            time.sleep(0.02)
            inside[0] -= 1

    threads = [threading.Thread(target=acquire) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most[0], had[0]


def test_one_of_many_concurrent_processes_acquires_the_lease(tmp_path: Path) -> None:
    for attempt in range(20):
        write_claim(Storage(f"{tmp_path}/{attempt}"), lease.LEASE_S + 1)
        most, had = race(f"{tmp_path}/{attempt}")
        assert most == 1
        assert had >= 1


def test_a_holder_that_lost_its_lease_ends_and_keeps_the_other_lease(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    command = [sys.executable, "-c", HOLD, str(tmp_path), "0.4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "held\n"
        (mine,) = storage.files(LEASES)
        storage.delete(mine)
        other = write_claim(storage)
        assert "RaysepError: " in (said := process.stderr.read().splitlines()[-1])
        assert "another process may have acquired it" in said
    assert storage.files(LEASES) == [other]


class Slow(Storage):
    """Storage of a process that is suspended before it renews its lease, while another process acquires it."""

    still = False

    def write_json(self, relative: str, value: object) -> None:
        if self.still and relative.startswith(f"{LEASES}/"):
            time.sleep(0.5)
            self.delete(relative)
            write_claim(Storage(self.uri))
        super().write_json(relative, value)


class Broken(Storage):
    """Storage that raises another error than an OSError."""

    still = False

    def is_file(self, relative: str = "") -> bool:
        if self.still:
            raise RuntimeError("no such thing as an OSError")
        return super().is_file(relative)


@pytest.mark.parametrize("kind", [Slow, Broken])
def test_writes_are_refused_after_the_lease_is_lost(
    kind: type[Slow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    storage = kind(str(tmp_path / "run"))

    def work() -> None:
        with lease.held(storage, "the run"):
            storage.still = True
            time.sleep(1.5)
            storage.write_bytes("file", b"1")

    with pytest.raises(RaysepError, match="another process may have acquired it"):
        work()
    assert not storage.exists("file")
    left = storage.files(LEASES)
    assert left == ([f"{LEASES}/elsewhere.json"] if kind is Slow else [])


def test_a_lease_file_that_could_not_be_deleted_is_ignored(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with lease.held(storage, "the run"):
        (mine,) = storage.files(LEASES)
        content = storage.read_bytes(mine)
    storage.write_bytes(mine, content)
    with lease.held(storage, "the run"):
        pass


def test_a_directory_created_only_for_the_lease_is_deleted(tmp_path: Path) -> None:
    with lease.held(Storage(str(tmp_path / "run")), "the run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_to_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RaysepError, match="can't be written to"),
        lease.held(Storage(f"{tmp_path}/file/run"), "the run"),
    ):
        pass


def test_another_process_with_the_old_pid_is_not_the_holder(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with lease.held(storage, "the run"):
        (path,) = storage.files(LEASES)
        content = storage.read_json(path)
    storage.write_json(path, {**content, "started": "0"})
    with lease.held(storage, "the run"):
        pass


def test_stores_made_of_a_fenced_one_and_their_copies_are_fenced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, storage in enumerate(stores(tmp_path)):
        results = Storage(f"{tmp_path}/results{number}")
        with lease.held(storage, "the run"):
            (mine,) = storage.files(LEASES)
            below, beside = storage.at("below"), results.fenced(storage)
            copies = [pickle.loads(pickle.dumps(store)) for store in (storage, below, beside)]
            for store in (storage, below, beside, *copies):
                store.write_bytes("file", b"1")
            # Another process acquires the directory: the lease of this one has expired.
            storage.delete(mine)
            with monkeypatch.context() as patch:
                patch.setattr(lease, "LEASE_S", 0.0)
                for store in (storage, below, beside, *copies):
                    with pytest.raises(StorageError, match="another process may have acquired it"):
                        store.write_bytes("file", b"2")
                    with pytest.raises(StorageError, match="another process may have acquired it"):
                        store.delete("file")
                    assert store.read_bytes("file") == b"1"
