"""CPU and memory limits of this process, from control groups and CPU affinity. Doesn't import Ray.

Containers, Kubernetes pods, systemd units (CPUQuota, MemoryMax, MemoryHigh) and Slurm jobs limit a process by nested
control groups, of which the tightest limit holds. Sources: cgroups(7), and in the kernel's documentation
admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/memory.rst and scheduler/sched-bwc.rst.

Public functions take `root`, the root directory of the file system, for tests.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path("/")
# Usual mount points of the hierarchies, if /proc/self/mountinfo can't be read: controller, directory.
USUAL_MOUNTS = (
    ("", "sys/fs/cgroup"),
    ("", "sys/fs/cgroup/unified"),
    ("memory", "sys/fs/cgroup/memory"),
    ("cpu", "sys/fs/cgroup/cpu"),
    ("cpu", "sys/fs/cgroup/cpu,cpuacct"),
)
# Version 1 writes the largest number of pages for no limit, version 2 writes `max`.
UNLIMITED_BYTES = 2**60
# Ray's rule for the size of its object store: this share of memory, at most the shared memory or 10 GB.
STORE_SHARE, STORE_BYTES = 0.3, 10**10
# Memory of the driver and of Ray's own processes.
DRIVER_BYTES = 2**30


@dataclass(frozen=True)
class Memory:
    """Memory that this process may use.

    Attributes:
        bytes: the limit, or the machine's memory without one.
        machine_bytes: the machine's memory.
    """

    bytes: int
    machine_bytes: int

    @property
    def limited(self) -> bool:
        """Whether the limit is below the machine's memory."""
        return self.bytes < self.machine_bytes


def memory(root: Path = ROOT) -> Memory:
    """Memory that this process may use: the minimum of the machine's memory and its control groups' limits."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory_limit(root)
    return Memory(machine if limit is None else min(machine, limit), machine)


def memory_limit(root: Path = ROOT) -> int | None:
    """Tightest memory limit in bytes of this process' control groups; None without a limit."""
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [_number(group / name) for group in _groups("memory", root) for name in names]
    return min((limit for limit in limits if limit is not None and 0 < limit < UNLIMITED_BYTES), default=None)


def cpu_limit(root: Path = ROOT) -> float | None:
    """Tightest CPU quota of this process' control groups, in CPUs (2.5); None without a quota."""
    quotas = []
    for group in _groups("cpu", root):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        pairs = [(quota, period), (_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))]
        # `max` and -1 mean no quota.
        quotas += [int(q) / int(p) for q, p in pairs if q.isdecimal() and p.isdecimal() and int(q) and int(p)]
    return min(quotas, default=None)


def cpus(root: Path = ROOT) -> int:
    """Number of CPUs that this process may use, at least 1: by quotas, cpusets and affinity (taskset, Slurm)."""
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, int(min(available, cpu_limit(root) or available)))


def ray_arguments(root: Path = ROOT) -> dict[str, Any]:
    """Arguments of `ray.init` that keep Ray within the limits.

    Ray reads only the files of a container's own group: not nested groups, such as those of systemd and Slurm, nor the
    affinity; and it rounds half a CPU down to none. Without a limit Ray's own defaults apply.

    Returns:
        `num_cpus`, and `object_store_memory` and `_memory` (for processes) in bytes, each only if limited.
    """
    arguments: dict[str, Any] = {}
    # This variable makes Ray use all CPUs: the user's choice.
    if "RAY_USE_MULTIPROCESSING_CPU_COUNT" not in os.environ and cpus(root) < (os.cpu_count() or 1):
        arguments["num_cpus"] = cpus(root)
    limit = memory(root)
    if limit.limited:
        store = int(min(STORE_SHARE * limit.bytes, max(STORE_BYTES, 0.95 * _shared_memory(root))))
        processes = max(limit.bytes // 10, limit.bytes - store - DRIVER_BYTES)
        arguments |= {"object_store_memory": store, "_memory": processes}
    return arguments


def _shared_memory(root: Path) -> int:
    try:
        return os.statvfs(root / "dev/shm").f_bavail * os.statvfs(root / "dev/shm").f_frsize
    except OSError:
        return 0


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Directories of this process' control groups and all of their ancestors, of versions 1 and 2."""
    mounts = _mounts(root) or [(name, root / path, PurePosixPath("/")) for name, path in USUAL_MOUNTS]
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(",") and (number, names) != ("0", ""):
            continue
        for name, mount, top in mounts:
            if name == (controller if names else ""):
                yield from _with_ancestors(mount, top, PurePosixPath(path))


def _with_ancestors(mount: Path, top: PurePosixPath, path: PurePosixPath) -> Iterator[Path]:
    """The directory of a group and its ancestors, up to the mount point; a container can't see more.

    A group outside the mounted hierarchy counts as the one at the mount point: a container may see the host's path of
    its group.
    """
    inside = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath()
    if ".." in inside.parts:
        inside = PurePosixPath()
    inside = PurePosixPath(*(part for part in inside.parts if part != "/"))
    for part in (inside, *inside.parents):
        yield mount / part


def _mounts(root: Path) -> Sequence[tuple[str, Path, PurePosixPath]]:
    """Mounted hierarchies, by proc_pid_mountinfo(5): controller ("" for version 2), mount point, group at its root."""
    mounts = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        with suppress(ValueError):
            kind, _, options = rest.split(" ", 2)
            _, _, _, top, mount, *_ = fields.split()
            names = {"cgroup2": [""], "cgroup": options.split(",")}.get(kind, [])
            mounts += [(name, root / mount.lstrip("/"), PurePosixPath(top)) for name in names]
    return mounts


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    """The text of a file; empty if it is missing or unreadable."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
