"""The entry point for `ray job submit`, against a cluster of one node with token authentication."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, TINY_VIT

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of_session(session: int) -> list[int]:
    """Ray's daemons leave the process group of `ray start`, but not its session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid pgrp session; a name may hold anything but ends with the last bracket.
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(stat.parent.name))
    return found


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node of its own, with ports and a temporary directory of its own, and the client's environment."""
    if not Path(RAY).is_file():
        pytest.skip("no `ray` command beside this Python")
    # Ray's sockets have names of at most 107 characters: a short directory.
    scratch = Path(f"/tmp/rs{os.getpid()}")
    port, dashboard = free_port(), free_port()
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    start = [RAY, "start", "--head", f"--port={port}", "--num-cpus=2", f"--temp-dir={scratch}"]
    start += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", "--block"]
    # The agent that takes jobs listens on a fixed port, which another Ray of this machine may have.
    start += [f"--dashboard-agent-listen-port={free_port()}"]
    start += ["--min-worker-port=20000", "--max-worker-port=20999", "--include-dashboard=true", "--disable-usage-stats"]
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(start, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        # Only what was started here: `ray stop` would stop every Ray of this machine.
        for own in processes_of_session(process.pid) or [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(own, signal.SIGKILL)
        process.wait()
        log.close()
        shutil.rmtree(scratch, ignore_errors=True)


# What the head answers in its first seconds, while its job server and agent start.
NOT_READY = ("Failed to connect", "No available agent")


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--working-dir", ".", "--", sys.executable, "jobs/evaluate.py", *arguments]
    for _ in range(30):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY, timeout=250)
        if not any(answer in done.stdout + done.stderr for answer in NOT_READY):
            break
        time.sleep(2)
    return done


@pytest.mark.cluster
@pytest.mark.slow
def test_a_submitted_job_is_the_run_and_its_exit_code(head: dict[str, str], tmp_path: Path):
    config = tmp_path / "run.yaml"
    values = {
        "data": {"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9], "seen": [0, 1]}},
        "models": [TINY_VIT],
        "finetune": {"steps": 2, "batch_size": 16},
        "score": {"metrics": ["nmi"]},
        "baselines": {"untrained": False, "pixels": None},
    }
    config.write_text(yaml.safe_dump(values))
    done = submit(head, str(config), "--run-dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert (tmp_path / "out" / "summary.json").is_file()

    wrong = submit(head, str(config), "--run-dir", str(tmp_path / "out"), "models.0.nam=x")
    assert wrong.returncode != 0
    assert "Did you mean 'name'" in wrong.stdout + wrong.stderr
