"""Benchmarks by running a part of their short forms: what they print, not how fast it is."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "part", "figures"),
    [
        ("scoring.py", "kmeans", ["k-means against scikit-learn", "inertia against scikit-learn's"]),
        ("extraction.py", "layers", ["all layers against the last one"]),
        ("scaling.py", "bytes", ["bytes read to score one layer"]),
    ],
)
def test_each_line_is_a_figure(program: str, part: str, figures: list[str]) -> None:
    command = [sys.executable, str(REPOSITORY / "jobs" / "benchmarks" / program), "--quick", "--part", part]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["figure"] for line in lines] == figures
    for line in lines:
        assert set(line) == {"figure", "value", "bar", "holds", "unit", "how"}
        assert line["value"] > 0
        # Bars are for the full size.
        assert line["holds"] is None


def test_a_missed_bar_is_exit_1() -> None:
    program = (
        "from figures import at_least, at_most, emit\n"
        "emit([at_least('a', 1.5, 2, 'x', 'so'), at_most('b', 1.0, 2, 'x', 'so')], quick=False)"
    )
    path = str(REPOSITORY / "jobs" / "benchmarks")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=path)
    assert done.returncode == 1
    assert [json.loads(line)["holds"] for line in done.stdout.splitlines()] == [False, True]
