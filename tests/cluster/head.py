"""A head node, for tests of jobs and of runs that join it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.ports import free_port

RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Head:
    """A running head, and the environment of its clients.

    Attributes:
        address: of its job server, http://HOST:PORT.
        gcs: HOST:PORT that runs join.
        session: of its processes.
        temporary: its TMPDIR, where `ray start` notes its address.
    """

    address: str
    environment: dict[str, str]
    gcs: str
    session: int
    temporary: str

    def run(self, *command: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command as a client, with changes to its environment; None takes a variable away."""
        changed = {**self.environment, **{name: value for name, value in changes.items() if value is not None}}
        environment = {name: value for name, value in changed.items() if changes.get(name, "") is not None}
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY, timeout=250)


@contextlib.contextmanager
def running(directory: Path, authenticate: str = "token", cpus: int = 2) -> Iterator[Head]:
    """A head of its own, with ports and a temporary directory of its own.

    Args:
        directory: for its log and its token.
        authenticate: `token`, with RAY_AUTH_TOKEN_PATH; `disabled`; or `home`: as Ray does by itself where it finds
            ~/.ray/auth_token.
    """
    # Ray's sockets have names of at most 107 characters: a short directory.
    scratch = Path(f"/tmp/rh{os.getpid()}{authenticate[0]}")
    scratch.mkdir(exist_ok=True)
    token = directory / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text(TOKEN)
    dashboard, gcs = free_port(), free_port()
    how = {
        "token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        "disabled": {"RAY_AUTH_MODE": "disabled"},
        "home": {"HOME": str(directory)},
    }[authenticate]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        **how,
    }
    start = [RAY, "start", "--head", f"--port={gcs}", f"--num-cpus={cpus}", f"--ray-client-server-port={free_port()}"]
    start += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", "--block"]
    # The agent that takes jobs listens on a fixed port, which another Ray of this machine may have.
    start += [f"--dashboard-agent-listen-port={free_port()}"]
    start += ["--min-worker-port=20000", "--max-worker-port=20999", "--include-dashboard=true", "--disable-usage-stats"]
    with (directory / "head.log").open("w") as log:
        process = subprocess.Popen(
            start,
            env={**environment, "TMPDIR": str(scratch)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            _wait(dashboard)
            clients = {**environment, "RAY_API_SERVER_ADDRESS": address}
            yield Head(address, clients, f"127.0.0.1:{gcs}", process.pid, str(scratch))
        finally:
            # Only what was started here: `ray stop` would stop every Ray of this machine.
            for own in processes_of_session(process.pid) or [process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(own, signal.SIGKILL)
            process.wait()
            shutil.rmtree(scratch, ignore_errors=True)


def _wait(port: int) -> None:
    """Until the job server answers; whom it lets in is another question."""
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2).close()
            return
        except urllib.error.HTTPError as refused:
            refused.close()
            return
        except OSError:
            pass
        time.sleep(0.5)
    raise RuntimeError("the head does not answer")


def processes_of_session(session: int) -> Sequence[int]:
    """Ray's daemons leave the process group of `ray start`, but not its session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid pgrp session; a name may hold anything but ends with the last bracket.
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(stat.parent.name))
    return found
