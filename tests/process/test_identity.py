import os
import subprocess
import sys

from raysep.process.identity import UNKNOWN, pid_namespace, start_time


def test_a_process_is_the_same_as_long_as_it_runs() -> None:
    assert start_time(os.getpid()) == start_time(os.getpid())
    assert pid_namespace() == pid_namespace()
    if pid_namespace() != UNKNOWN:
        assert int(start_time(os.getpid()) or "") > 0


def test_an_ended_process_has_no_start_time_not_even_as_a_zombie() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        if pid_namespace() != UNKNOWN:
            assert start_time(process.pid) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(process.pid) is None
    assert start_time(process.pid) is None
