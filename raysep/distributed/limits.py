"""What this process may use of its machine: CPUs and memory, by control groups and by its affinity. Knows no Ray.

Control groups lie inside each other, and each of them binds: a container's, a Kubernetes pod's, a unit of systemd's
(CPUQuota, MemoryMax, MemoryHigh), a job of Slurm's. The tightest holds. Sources: cgroups(7), and in the kernel's
documentation admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/memory.rst and scheduler/sched-bwc.rst.

All functions take `root`, the directory that stands for `/`.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path("/")
# Where the groups are mounted if /proc/self/mountinfo doesn't say it.
USUAL_MOUNTS = (
    ("", "sys/fs/cgroup"),
    ("", "sys/fs/cgroup/unified"),
    ("memory", "sys/fs/cgroup/memory"),
    ("cpu", "sys/fs/cgroup/cpu"),
    ("cpu", "sys/fs/cgroup/cpu,cpuacct"),
)
# Version 1 says "no limit" with the largest number of pages, version 2 with `max`.
UNLIMITED_BYTES = 2**60
# Ray's own rules for its object store: this share of the memory, and no more than there is shared memory, or 10 GB.
STORE_SHARE, STORE_BYTES = 0.3, 10**10
# What the driver and Ray's own processes take beside the work.
DRIVER_BYTES = 2**30


@dataclass(frozen=True)
class Memory:
    """Memory that this process may use.

    Attributes:
        bytes: of it; the limit, or the machine's memory where there is none.
        machine_bytes: what the machine has.
    """

    bytes: int
    machine_bytes: int

    @property
    def limited(self) -> bool:
        """Whether it may use less than there is."""
        return self.bytes < self.machine_bytes


def memory(root: Path = ROOT) -> Memory:
    """The memory that holds: of the machine, or of the tightest control group."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory_limit(root)
    return Memory(machine if limit is None else min(machine, limit), machine)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the control groups of this process allow; None: no limit, or no control groups."""
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    found = [_number(group / name) for group in _groups("memory", root) for name in names]
    return min((limit for limit in found if limit is not None and 0 < limit < UNLIMITED_BYTES), default=None)


def cpu_limit(root: Path = ROOT) -> float | None:
    """CPUs that the quotas of this process' control groups allow, as 2.5; None: no quota, or no control groups."""
    found = []
    for group in _groups("cpu", root):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        pairs = [(quota, period), (_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))]
        # `max` and -1 stand for no quota.
        found += [int(q) / int(p) for q, p in pairs if q.isdecimal() and p.isdecimal() and int(q) and int(p)]
    return min(found, default=None)


def cpus(root: Path = ROOT) -> int:
    """Whole CPUs that this process may keep busy, at least 1: by quotas, cpusets and affinity (taskset, Slurm)."""
    there = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, int(min(there, cpu_limit(root) or there)))


def ray_arguments(root: Path = ROOT) -> dict[str, Any]:
    """What `ray.init` has to be told to keep to the limits.

    Ray looks at the files of a container's own group only, not at a group inside others, as systemd and Slurm make
    them, nor at the affinity; and of half a CPU it makes none. Where nothing is limited, Ray decides by itself.

    Returns:
        `num_cpus`, and `object_store_memory` and `_memory` (for processes) in bytes, each where there is a limit.
    """
    found: dict[str, Any] = {}
    # Whoever sets one of these has told Ray what to take.
    if "RAY_USE_MULTIPROCESSING_CPU_COUNT" not in os.environ and cpus(root) < (os.cpu_count() or 1):
        found["num_cpus"] = cpus(root)
    held = memory(root)
    if held.limited:
        store = int(min(STORE_SHARE * held.bytes, max(STORE_BYTES, 0.95 * _shared_memory(root))))
        found |= {"object_store_memory": store, "_memory": max(held.bytes // 10, held.bytes - store - DRIVER_BYTES)}
    return found


def _shared_memory(root: Path) -> int:
    try:
        return os.statvfs(root / "dev/shm").f_bavail * os.statvfs(root / "dev/shm").f_frsize
    except OSError:
        return 0


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Directories of the groups that this process is in, each with all groups around it, in both versions."""
    mounts = _mounts(root) or [(name, root / place, PurePosixPath("/")) for name, place in USUAL_MOUNTS]
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(",") and (number, names) != ("0", ""):
            continue
        for name, place, top in mounts:
            if name == (controller if names else ""):
                yield from _upwards(place, top, PurePosixPath(path))


def _upwards(place: Path, top: PurePosixPath, path: PurePosixPath) -> Iterator[Path]:
    """The directory of a group and those above it, up to where they are mounted: more a container can't see.

    Outside of what is mounted there, as in a container that sees the host's path of its group, it is the mount itself.
    """
    inside = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath()
    if ".." in inside.parts:
        inside = PurePosixPath()
    inside = PurePosixPath(*(part for part in inside.parts if part != "/"))
    for part in (inside, *inside.parents):
        yield place / part


def _mounts(root: Path) -> Sequence[tuple[str, Path, PurePosixPath]]:
    """Mounted hierarchies by proc_pid_mountinfo(5): controller ("" for version 2), directory, its path within."""
    found = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        with suppress(ValueError):
            kind, _, options = rest.split(" ", 2)
            _, _, _, top, place, *_ = fields.split()
            names = {"cgroup2": [""], "cgroup": options.split(",")}.get(kind, [])
            found += [(name, root / place.lstrip("/"), PurePosixPath(top)) for name in names]
    return found


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    """A file's text; empty where there is none, or it may not be read."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
