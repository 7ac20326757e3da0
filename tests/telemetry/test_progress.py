import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raysep.errors import ConfigError, StageError
from raysep.process.stderr_capture import quiet
from raysep.telemetry import Telemetry


def console(**options: Any) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=100, **options), out


def test_without_a_terminal_progress_is_printed_in_lines() -> None:
    where, out = console()
    with Telemetry(where).stage("embed", 10, "images") as bar:
        bar.advance(3, "model [x] a")
        bar.advance(3, "too soon after the last")
    assert "embed" in out.getvalue()
    assert "3/10 images  model [x] a" in out.getvalue()
    assert "too soon" not in out.getvalue()


def test_a_terminal_shows_a_bar() -> None:
    where, out = console(force_terminal=True, color_system=None, highlight=False)
    telemetry = Telemetry(where)
    with telemetry.stage("score", 2, "layers") as bar:
        bar.advance(1, "[red]x")
        bar.advance(1)
    telemetry.line("score", "[done]")
    assert "2/2" in out.getvalue()
    assert "[done]" in out.getvalue()


def test_stderr_of_libraries_is_hidden_and_kept_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet(False) as where:
        os.write(2, b"noise from C++\n")
        warnings.warn("noise", stacklevel=1)
        assert not logging.getLogger("timm").isEnabledFor(logging.WARNING)
        where.print("ours")
    assert capfd.readouterr().err == "ours\n"

    def fail(error: Exception) -> None:
        with quiet(False):
            os.write(2, b"what went wrong\n")
            raise error

    with pytest.raises(StageError):
        fail(StageError("x"))
    line = capfd.readouterr().err
    log = Path(line.strip().rsplit(" ", 1)[-1])
    assert log.read_text() == "what went wrong\n"
    log.unlink()
    # After wrong use the log is not kept.
    with pytest.raises(ConfigError):
        fail(ConfigError(["x"]))
    assert capfd.readouterr().err == ""


def test_verbose_hides_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet(True):
        print("theirs", file=sys.stderr)
    assert capfd.readouterr().err == "theirs\n"
