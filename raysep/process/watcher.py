"""Report why a process died silently: killed by Ray's C++ core, `kill -9`, or the kernel's out-of-memory killer.

`watched` runs this file as a child process, which holds the real stderr and reads a pipe. If the pipe closes before
the block ends, the child prints a last line with the cause. It imports only the standard library, so it starts in
15 ms, in parallel to the work.
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
# Read at most this much of the end of the log.
TAIL_BYTES = 64 * 1024
# Patterns of Ray's last log lines before it ends the process, and their meaning.
CAUSES = (
    (r"Failed to connect to GCS|GCS may have been killed|GCS is (?:dead|down)", "lost the head of the Ray cluster"),
    (r"[Rr]aylet.{0,60}(?:died|dead|is not alive|unexpectedly)|lost connection to raylet", "lost Ray on this machine"),
    (r"[Oo]ut of memory|bad_alloc|Cannot allocate memory", "ran out of memory"),
)
# Prefix of Ray's log lines: time, process and source line. Only their first sentence is reported.
PREFIX = r"^\[[^]]*\] \S+: "
UNKNOWN = "ended unexpectedly, killed by a library, by `kill -9`, or by the kernel for lack of memory (see `dmesg`)"
_pipe: int | None = None


@contextmanager
def watched(stderr: int, log: str | None, kept: str) -> Iterator[None]:
    """Report on stderr if the process dies within a block.

    Args:
        stderr: file descriptor for the report.
        log: path of the file with Ray's log lines; None if they go to stderr.
        kept: sentence that says which results are kept and how to resume.
    """
    global _pipe
    ours, theirs = os.pipe()
    # In a new session, so that neither Ctrl-C nor a closing terminal ends it.
    command = [sys.executable, "-I", "-S", __file__, log or "", kept]
    try:
        process = subprocess.Popen(
            command, stdin=ours, stdout=subprocess.DEVNULL, stderr=stderr, cwd="/", start_new_session=True
        )
    except OSError:
        # The process limit is reached: work without a watcher.
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
    """Set the cause to report if the process dies from now on; no-op outside of `watched`."""
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe, f"{reason}\n".encode())


def report(piped: str, log: str, kept: str) -> str | None:
    """The line that reports how the process died; None if the block had ended.

    Args:
        piped: text that the process wrote to the pipe.
        log: path of the file with Ray's log lines; empty without one.
        kept: sentence that says which results are kept and how to resume.
    """
    reasons = piped.split("\n")[:-1]
    if reasons and reasons[-1] == DONE:
        return None
    tail = _tail(log) if log else ""
    cause = next((cause for pattern, cause in CAUSES if re.search(pattern, tail)), UNKNOWN)
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    last = f" (last line of its log: {re.sub(PREFIX, '', lines[-1]).partition('. ')[0][:200]})" if lines else ""
    where = f" The log of the libraries is in {log}" if lines else ""
    return f"error: raysep {reasons[-1] if reasons else cause}{last}. {kept}.{where}"


def _tail(log: str) -> str:
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def main() -> None:
    """Entry point of the watcher: wait until the watched process closes its pipe, then print how the process ended."""
    log, kept = sys.argv[1:]
    line = report(sys.stdin.buffer.read().decode(errors="replace"), log, kept)
    if line is None:
        return
    if log and not _tail(log):
        with contextlib.suppress(OSError):
            Path(log).unlink()
    # Begin a new line, below a progress bar.
    print(("\n" if sys.stderr.isatty() else "") + line, file=sys.stderr)


if __name__ == "__main__":
    main()
