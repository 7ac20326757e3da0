"""Reports on processes that died without a message of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from raysep.process import watcher

GCS = "[2026-11-27 11:17:21,895 E 6148 6200] rpc_client.h:204: Failed to connect to GCS within 60 seconds. GCS may have"
BLOCK = """
import os, signal, sys
from raysep.process.stderr_capture import quiet
with quiet({verbose}, "The run keeps all"):
    os.write(2, b"words of a library\\n")
    {end}
"""


@pytest.mark.parametrize(
    ("piped", "log", "words"),
    [
        (
            "",
            GCS,
            "error: raysep lost the head of the Ray cluster (last line of its log: Failed to connect to GCS within",
        ),
        ("", "std::bad_alloc\n", "error: raysep ran out of memory"),
        ("", "", "error: raysep ended unexpectedly, killed by a library, by `kill -9`"),
        ("was stopped by SIGTERM, but did not end in time\n", "x", "error: raysep was stopped by SIGTERM"),
        (f"was stopped\n{watcher.DONE}\n", GCS, None),
    ],
)
def test_the_report_names_the_cause(piped: str, log: str, words: str | None, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(log)
    line = watcher.report(piped, str(file), "All is kept")
    if words is None:
        assert line is None
    else:
        assert line is not None
        assert line.startswith(words)
        assert "All is kept" in line
        assert (str(file) in line) == bool(log)


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize(("end", "code"), [("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os._exit(1)", 1)])
def test_the_last_line_of_a_killed_process_is_a_report(end: str, code: int, verbose: bool) -> None:
    script = BLOCK.format(verbose=verbose, end=end)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == code
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: raysep ended unexpectedly")
    assert "The run keeps all" in last
    assert ("words of a library" in done.stderr.splitlines()) == verbose
    if not verbose:
        log = Path(last.rpartition(" is in ")[2])
        assert log.read_text() == "words of a library\n"
        log.unlink()


def test_a_process_that_ends_normally_gets_no_report() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(verbose=False, end="pass")], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_signal_is_reported() -> None:
    script = """
import os, signal, time
from raysep.process import signals
from raysep.process.stderr_capture import quiet
with signals.stopping("kept"), quiet(False, "The run keeps all"):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert "error: raysep was stopped by SIGTERM, but did not end in time" in done.stderr
