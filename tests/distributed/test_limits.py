"""Limits of control groups: in fake file trees, and in a real control group if one can be created."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysep.distributed import limits
from raysep.distributed.limits import Memory, cpu_limit, memory_limit, ray_arguments

GIB = 2**30
NONE_V1 = "9223372036854771712"
V2 = "24 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "31 1 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
    "32 1 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
)
UNIT = "/system.slice/raysep.service"


def tree(root: Path, cgroup: str | None, mounts: str | None, **files: str) -> Path:
    """Create a root directory with control groups; `files` are relative to /sys/fs/cgroup."""
    texts = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **texts}.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
    return root


# Content of /proc/self/cgroup, mounts (None: no mountinfo), files, memory limit in bytes, CPUs.
TREES = {
    "v2, the root of a Kubernetes pod": ("0::/", V2, {"memory.max": str(4 * GIB), "cpu.max": "200000 100000"}, 4, 2),
    "v2, without mountinfo": ("0::/", None, {"memory.max": str(4 * GIB), "cpu.max": "200000 100000"}, 4, 2),
    "v2, no limit": ("0::/", V2, {"memory.max": "max", "cpu.max": "max 100000"}, None, None),
    "v2, half a CPU": ("0::/", V2, {"cpu.max": "50000 100000"}, None, 0.5),
    "v2, another period": ("0::/", V2, {"cpu.max": "25000 10000"}, None, 2.5),
    "systemd's MemoryMax and CPUQuota": (
        f"0::{UNIT}",
        V2,
        {f"{UNIT[1:]}/memory.max": str(2 * GIB), f"{UNIT[1:]}/cpu.max": "150000 100000"},
        2,
        1.5,
    ),
    "systemd's MemoryHigh is tighter": (
        f"0::{UNIT}",
        V2,
        {f"{UNIT[1:]}/memory.max": str(2 * GIB), f"{UNIT[1:]}/memory.high": str(GIB)},
        1,
        None,
    ),
    "v2, the slice around it is tighter": (
        f"0::{UNIT}",
        V2,
        {
            f"{UNIT[1:]}/memory.max": str(8 * GIB),
            "system.slice/memory.max": str(3 * GIB),
            f"{UNIT[1:]}/cpu.max": "max 100000",
            "system.slice/cpu.max": "300000 100000",
        },
        3,
        3,
    ),
    "v2, the group itself shows nothing": (
        f"0::{UNIT}/inner",
        V2,
        {f"{UNIT[1:]}/memory.max": str(2 * GIB)},
        2,
        None,
    ),
    "v2, a path outside of what is mounted": ("0::/../../pod", V2, {"memory.max": str(2 * GIB)}, 2, None),
    "v2, someone else's group": ("0::/mine", V2, {"mine/memory.max": "max", "other/memory.max": str(GIB)}, None, None),
    "v1": (
        "4:memory:/job\n2:cpu,cpuacct:/job",
        V1,
        {
            "memory/job/memory.limit_in_bytes": str(6 * GIB),
            "cpu,cpuacct/job/cpu.cfs_quota_us": "400000",
            "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        },
        6,
        4,
    ),
    "v1, no limit": (
        "4:memory:/\n2:cpu,cpuacct:/",
        V1,
        {
            "memory/memory.limit_in_bytes": NONE_V1,
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        None,
        None,
    ),
    "v1, Slurm's job around its step": (
        "4:memory:/slurm/uid_1/job_7/step_0",
        V1,
        {
            "memory/slurm/uid_1/job_7/step_0/memory.limit_in_bytes": NONE_V1,
            "memory/slurm/uid_1/job_7/memory.limit_in_bytes": str(5 * GIB),
        },
        5,
        None,
    ),
    # A container that sees the host's path of its group, which is mounted as the root of its hierarchy.
    "v1, docker": (
        "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc",
        V1.replace(" / /sys", " /docker/abc /sys"),
        {
            "memory/memory.limit_in_bytes": str(4 * GIB),
            "cpu,cpuacct/cpu.cfs_quota_us": "50000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        4,
        0.5,
    ),
    "v1, a group within docker's": (
        "4:memory:/docker/abc/inner",
        V1.replace(" / /sys", " /docker/abc /sys"),
        {"memory/inner/memory.limit_in_bytes": str(2 * GIB), "memory/memory.limit_in_bytes": str(4 * GIB)},
        2,
        None,
    ),
    "v1, without mountinfo": ("4:memory:/", None, {"memory/memory.limit_in_bytes": str(4 * GIB)}, 4, None),
    "hybrid: v1 counts memory beside systemd's v2": (
        f"4:memory:{UNIT}\n1:name=systemd:{UNIT}\n0::{UNIT}",
        V1 + "\n41 1 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        {f"memory{UNIT}/memory.limit_in_bytes": str(7 * GIB), f"unified{UNIT}/cgroup.procs": "1"},
        7,
        None,
    ),
    "files of nonsense": ("0::/", V2, {"memory.max": "lots", "cpu.max": ""}, None, None),
    "no control groups": (None, None, {}, None, None),
    "groups that are mounted nowhere": ("0::/a/b", "", {}, None, None),
}


@pytest.mark.parametrize("name", TREES)
def test_the_tightest_group_holds(tmp_path: Path, name: str) -> None:
    cgroup, mounts, files, gib, cpus = TREES[name]
    root = tree(tmp_path, cgroup, mounts, **files)
    assert memory_limit(root) == (None if gib is None else gib * GIB)
    assert cpu_limit(root) == cpus


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 CPUs and 256 GiB."""
    sizes = {"SC_PHYS_PAGES": 2**26, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


def test_a_pod_of_two_of_64_cpus_starts_two_workers(tmp_path: Path, large: None) -> None:
    root = tree(tmp_path, "0::/", V2, **{"memory.max": str(8 * GIB), "cpu.max": "200000 100000"})
    assert limits.memory(root) == Memory(8 * GIB, 256 * GIB)
    assert limits.cpus(root) == 2
    found = ray_arguments(root)
    assert found["num_cpus"] == 2
    # Ray's share for its object store, 1 GiB for the driver, the rest for processes.
    assert found["object_store_memory"] == int(0.3 * 8 * GIB)
    assert found["_memory"] == 8 * GIB - int(0.3 * 8 * GIB) - GIB


@pytest.mark.parametrize(("quota", "cpus"), [("50000", 1), ("250000", 2), ("6400000", 64), ("99900000", 64)])
def test_cpus_are_whole_and_at_least_one(tmp_path: Path, large: None, quota: str, cpus: int) -> None:
    assert limits.cpus(tree(tmp_path, "0::/", V2, **{"cpu.max": f"{quota} 100000"})) == cpus


def test_affinity_is_a_limit(tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert ray_arguments(tree(tmp_path, "0::/", V2)) == {"num_cpus": 3}


def test_without_limits_rays_defaults_apply(tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_arguments(tmp_path) == {}
    # A limit above the machine's memory is no limit.
    root = tree(tmp_path, "0::/", V2, **{"memory.max": str(512 * GIB), "cpu.max": "12800000 100000"})
    assert ray_arguments(root) == {}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert limits.cpus(tmp_path) == 64


def test_rays_own_variable_for_all_cpus_wins(tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")
    assert ray_arguments(tree(tmp_path, "0::/", V2, **{"cpu.max": "200000 100000"})) == {}


def test_a_small_memory_limit_leaves_some_for_processes(tmp_path: Path, large: None) -> None:
    found = ray_arguments(tree(tmp_path, "0::/", V2, **{"memory.max": str(GIB)}))
    assert 0 < found["_memory"] < found["_memory"] + found["object_store_memory"] < GIB


def made_group() -> tuple[Path, str] | None:
    """Create a control group; returns its directory and the name of its limit file, or None without permission."""
    for place, name in (("memory", "memory.limit_in_bytes"), (".", "memory.max")):
        group = Path("/sys/fs/cgroup") / place / f"raysep-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / name).exists():
            return group, name
        group.rmdir()
    return None


def test_a_real_group() -> None:
    made = made_group()
    if made is None:
        pytest.skip("no control group can be made here: /sys/fs/cgroup can't be written, or counts no memory")
    group, name = made
    code = "import sys; sys.stdin.readline(); from raysep.distributed import limits; print(limits.memory_limit())"
    try:
        (group / name).write_text(str(GIB))
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        (group / "cgroup.procs").write_text(str(process.pid))
        assert process.communicate("\n", timeout=60)[0].strip() == str(GIB)
    finally:
        group.rmdir()


@pytest.mark.slow
@pytest.mark.cluster
def test_ray_starts_with_what_the_limits_allow(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", V2, **{"memory.max": str(2 * GIB), "cpu.max": "100000 100000"})
    code = (
        "import sys, ray; from pathlib import Path; from raysep.distributed import limits\n"
        "ray.init(address='local', include_dashboard=False, **limits.ray_arguments(Path(sys.argv[1])))\n"
        "(node,) = ray.nodes(); found = node['Resources']; print('found', found['CPU'], int(found['memory']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, timeout=120)
    assert f"found 1.0 {2 * GIB - int(0.3 * 2 * GIB) - GIB}" in done.stdout, done.stderr
