"""Three machines on one: network namespaces with a bridge between them, each with Ray, and with a disk of its own.

Everything that a node writes lies under `disk`, where each has a file system in memory that no other one sees.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.s3 import environment

PREFIX = "10.77.0."
DASHBOARD, S3_PORT = 8265, 5000
# `ip` puts processes into namespaces, `unshare` gives them mounts of their own.
NEEDED = ("ip", "unshare", "mount")


def problem() -> str | None:
    """Why there can be no nodes here, or None."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} on this machine (Debian: iproute2, util-linux, mount)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["unshare", "-nm", "true"], capture_output=True, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else None


# Three nodes, and a dashboard that answers.
ALL_THERE = f"""
import logging, ray, socket
ray.init(address="{PREFIX}1:6379", logging_level=logging.ERROR)
socket.create_connection(("{PREFIX}1", {DASHBOARD}), timeout=5).close()
assert sum(node["Alive"] for node in ray.nodes()) == 3
"""


@dataclass(frozen=True)
class Nodes:
    """The first node is the head; it serves S3 as well.

    Attributes:
        names: of the namespaces.
        disk: where each node has its own.
        environment: of whatever runs on a node.
    """

    names: Sequence[str]
    disk: Path
    environment: Mapping[str, str]

    def address(self, node: int) -> str:
        """A node's address."""
        return f"{PREFIX}{node + 1}"

    def on(self, node: int, command: Sequence[str], **options: object) -> "subprocess.Popen[str]":
        """Start a process on a node. It sees the node's network, and the node's disk if that is there already."""
        holder = self.disk.with_name(f"{self.disk.name}-{node}.pid")
        enter = ["ip", "netns", "exec", self.names[node]]
        if holder.is_file():
            enter = ["nsenter", f"--target={holder.read_text()}", "--net", "--mount"]
        return subprocess.Popen([*enter, *command], env=dict(self.environment), text=True, **options)  # type: ignore[call-overload]

    def run(self, *command: str, node: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command on a node to its end."""
        process = self.on(node, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


@contextlib.contextmanager
def three_nodes(cpus: int = 1) -> Iterator[Nodes]:
    """Three nodes with so many CPUs each, with token authentication."""
    tag = f"rs{os.getpid() % 10_000}"
    # Ray's sockets have names of at most 107 characters: a short directory.
    nodes = Nodes([f"{tag}-{n}" for n in range(3)], Path(f"/tmp/{tag}"), _environment(Path(f"/tmp/{tag}")))
    nodes.disk.mkdir()
    started: list[subprocess.Popen[str]] = []
    try:
        _connect(nodes)
        started += [_disk(nodes, node) for node in range(3)]
        moto = [sys.executable, "-m", "moto.server", "-H", nodes.address(0), "-p", str(S3_PORT)]
        started.append(nodes.on(0, moto, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
        for node in range(3):
            started.append(_ray(nodes, node, cpus))
            if node == 0:
                _wait_for(nodes, "ray", "health-check", "--address", f"{nodes.address(0)}:6379")
        _wait_for(nodes, "python", "-c", ALL_THERE)
        yield nodes
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in nodes.names:
            # Ray's daemons have sessions of their own: whatever is left in the namespaces was started here.
            left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        for node in range(3):
            nodes.disk.with_name(f"{nodes.disk.name}-{node}.pid").unlink(missing_ok=True)
        shutil.rmtree(nodes.disk, ignore_errors=True)


def _environment(disk: Path) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
    return {
        **own,
        **environment(S3_PORT, f"{PREFIX}1"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HOME": str(disk / "home"),
        "TMPDIR": str(disk / "tmp"),
        "PYTHONWARNINGS": "ignore",
    }


def _connect(nodes: Nodes) -> None:
    """A bridge in the head's namespace, and a cable to it from each of the others."""
    for name in nodes.names:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
    head = nodes.names[0]
    _ip("-n", head, "link", "add", "bridge0", "type", "bridge")
    _ip("-n", head, "addr", "add", f"{nodes.address(0)}/24", "dev", "bridge0")
    _ip("-n", head, "link", "set", "bridge0", "up")
    for node, name in enumerate(nodes.names[1:], start=1):
        _ip("-n", head, "link", "add", f"port{node}", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", head, "link", "set", f"port{node}", "master", "bridge0", "up")
        _ip("-n", name, "addr", "add", f"{nodes.address(node)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")


def _disk(nodes: Nodes, node: int) -> "subprocess.Popen[str]":
    """A process that holds a node's mounts: a file system of its own where the node writes."""
    made = " ".join(str(nodes.disk / name) for name in ("home", "tmp", "ray"))
    script = (
        f"mount --make-rprivate / && mount -t tmpfs own {nodes.disk} && mkdir {made} && echo ready && exec sleep 3600"
    )
    process = nodes.on(node, ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == "ready\n"
    nodes.disk.with_name(f"{nodes.disk.name}-{node}.pid").write_text(str(process.pid))
    return process


def _ray(nodes: Nodes, node: int, cpus: int) -> "subprocess.Popen[str]":
    command = ["ray", "start", "--block", f"--num-cpus={cpus}", f"--node-ip-address={nodes.address(node)}"]
    command += ["--object-store-memory=120000000", "--disable-usage-stats"]
    if node == 0:
        command += ["--head", "--port=6379", "--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD}"]
        command += [f"--temp-dir={nodes.disk}/ray"]
    else:
        command += [f"--address={nodes.address(0)}:6379"]
    return nodes.on(node, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _wait_for(nodes: Nodes, *command: str) -> None:
    for _ in range(60):
        done = nodes.run(*command)
        if done.returncode == 0:
            return
        time.sleep(1)
    raise RuntimeError(f"{command[:2]} never succeeded: {done.stdout}{done.stderr}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
