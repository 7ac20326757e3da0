"""What ended a process that could not say it itself: Ray's C++ core, `kill -9`, or the kernel for want of memory.

`watched` starts this file as a process of its own, which holds the real stderr and waits for the end of a pipe. Where
the pipe ends before the block does, it writes the last line that its user sees. It imports nothing but the standard
library, and takes 15 ms to start, beside the work.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DONE = "\0done"
# Of a log that may be long.
TAIL_BYTES = 64 * 1024
# What Ray's core writes before it ends the process, and what it means.
CAUSES = (
    (r"Failed to connect to GCS|GCS may have been killed|GCS is (?:dead|down)", "lost the head of the Ray cluster"),
    (r"[Rr]aylet.{0,60}(?:died|dead|is not alive|unexpectedly)|lost connection to raylet", "lost Ray on this machine"),
    (r"[Oo]ut of memory|bad_alloc|Cannot allocate memory", "ran out of memory"),
)
# Of Ray's lines: time, process and place. Behind the first sentence comes advice.
PREFIX = r"^\[[^]]*\] \S+: "
UNKNOWN = "was ended: by a library, by `kill -9`, or by the kernel for want of memory (`dmesg` shows that)"
_pipe: int | None = None


@contextmanager
def watched(stderr: int, log: str | None, kept: str) -> Iterator[None]:
    """Have what ends the process within a block reported.

    Args:
        stderr: the file descriptor that the report goes to.
        log: where Ray's own lines go meanwhile; None: to stderr as well.
        kept: what is there afterwards, and how to go on.
    """
    global _pipe
    ours, theirs = os.pipe()
    # Alone in its session: neither Ctrl-C nor the end of a terminal's group reaches it.
    command = [sys.executable, "-I", "-S", __file__, log or "", kept]
    try:
        process = subprocess.Popen(
            command, stdin=ours, stdout=subprocess.DEVNULL, stderr=stderr, cwd="/", start_new_session=True
        )
    except OSError:
        # No room for another process: the work is worth more.
        process = None
    finally:
        os.close(ours)
    before, _pipe = _pipe, theirs
    try:
        yield
    finally:
        expect(DONE)
        _pipe = before
        os.close(theirs)
        if process is not None:
            process.wait()


def expect(reason: str) -> None:
    """Within `watched`: what is to be reported if the process ends now."""
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe, f"{reason}\n".encode())


def report(told: str, log: str, kept: str) -> str | None:
    """The last line for a user; None where the process has ended its work.

    Args:
        told: what the process wrote to the pipe.
        log: path of the log of Ray's own lines; empty: there is none.
        kept: what is there afterwards.
    """
    reasons = told.split("\n")[:-1]
    if reasons and reasons[-1] == DONE:
        return None
    last = _tail(log) if log else ""
    found = next((what for pattern, what in CAUSES if re.search(pattern, last)), UNKNOWN)
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    said = f" (last of its log: {re.sub(PREFIX, '', lines[-1]).partition('. ')[0][:200]})" if lines else ""
    where = f" What the libraries said is in {log}" if lines else ""
    return f"error: raysep {reasons[-1] if reasons else found}{said}. {kept}.{where}"


def _tail(log: str) -> str:
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def main() -> None:
    """As a process: wait for the end of the other one."""
    log, kept = sys.argv[1:]
    line = report(sys.stdin.buffer.read().decode(errors="replace"), log, kept)
    if line is None:
        return
    if log and not _tail(log):
        with contextlib.suppress(OSError):
            Path(log).unlink()
    # A line that was being drawn stays as it is.
    print(("\n" if sys.stderr.isatty() else "") + line, file=sys.stderr)


if __name__ == "__main__":
    main()
