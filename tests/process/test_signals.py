"""The first signal raises `Interrupted`, the second ends the process."""

import signal
import subprocess
import sys

import pytest

from raysep.process.signals import Interrupted

PROGRAM = """
import signal, sys, time
from raysep.process import signals
if "ignoring" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    with signals.caught():
        # Ray installs its own handler when it starts.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        signals.rearm()
        print("ready", flush=True)
        time.sleep(30)
except signals.Interrupted as interrupted:
    print(interrupted, flush=True)
    if "hanging" in sys.argv:
        time.sleep(30)
print("after", flush=True)
"""


def run(*words: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_raises_interrupted(number: signal.Signals) -> None:
    with run() as process:
        process.send_signal(number)
        assert process.communicate(timeout=20)[0] == f"{number.name}\nafter\n"
        assert process.returncode == 0


def test_the_second_signal_ends_the_process_at_once() -> None:
    with run("hanging") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "SIGTERM\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 130


def test_a_hanging_process_ends_after_the_grace_period() -> None:
    program = PROGRAM.replace("with signals.caught", "signals.GRACE_S = 0.5\n    with signals.caught")
    process = subprocess.Popen([sys.executable, "-c", program, "hanging"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 130


def test_an_ignored_signal_stays_ignored() -> None:
    with run("ignoring") as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "SIGTERM\nafter\n"
    with run("ignoring", "hanging") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "SIGTERM\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.kill()


def test_except_exception_does_not_catch_interrupted() -> None:
    assert not issubclass(Interrupted, Exception)


def test_a_signal_within_a_blocking_ray_call_raises_interrupted() -> None:
    """Ray swallows exceptions of handlers, and turns a KeyboardInterrupt into a new one."""
    program = PROGRAM.replace(
        "time.sleep(30)",
        "import ray; ray.init(address='local', include_dashboard=False, "
        "log_to_driver=False, num_cpus=1); signals.rearm(); f = ray.remote(lambda: time.sleep(60)).remote(); "
        "print('waiting', flush=True); ray.wait([f])",
        1,
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "waiting\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "SIGTERM\n"
