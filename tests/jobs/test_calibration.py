"""The calibration program by running its short form, which prints what the long one prints."""

import json
import subprocess
import sys

import pytest

from raysep.config.registry import METRICS
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_intervals_hold_what_they_promise() -> None:
    program = REPOSITORY / "jobs" / "benchmarks" / "calibration.py"
    done = subprocess.run(
        [sys.executable, str(program), "--quick"], capture_output=True, text=True, timeout=280, cwd=REPOSITORY
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    missed = [line for line in lines if line["holds"] is False]
    assert missed == []
    assert done.returncode == 0, done.stderr
    found = {line["figure"]: line["value"] for line in lines}
    assert {f"coverage of {metric}" for metric in METRICS} < set(found)
    assert found["bias of naive g, equal layers, nmi"] > 3 * abs(found["bias of corrected g, equal layers, nmi"])
