"""Identity of a process across PID reuse, machines and containers, from /proc."""

from pathlib import Path

# Without /proc processes cannot be told apart.
UNKNOWN = "?"


def pid_namespace() -> str:
    """Identifier of the PID namespace: containers of one host have their own PIDs, and host names may repeat."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return UNKNOWN


def start_time(pid: int) -> str | None:
    """Process start time in clock ticks since boot: detects PID reuse.

    None for a process that does not exist or is a zombie, and without /proc.
    """
    try:
        # Format: pid (name) state ...; the name may contain anything, and ends at the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] == "Z" else fields[19]
