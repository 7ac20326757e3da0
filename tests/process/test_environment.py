"""Exit codes and output of commands in the environments of containers, schedulers and terminals."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.test_jobs import CONFIG
from tests.conftest import REPOSITORY

PYTHON = f"{sys.executable} -m raysep"
# A user id without a passwd entry, which may read root's files.
NOBODY = (
    "setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps +dac_read_search,+dac_override "
    "--ambient-caps +dac_read_search,+dac_override env -u USER -u LOGNAME"
)
CHINESE = "models.0.name=汉字"
OK = "valid; "

# Name, shell command with {raysep} and {config}, exit code, text on stdout or stderr.
TABLE = [
    ("no home", "env -u HOME {raysep} validate {config}", 0, OK),
    ("a home that is not there", "HOME=/nonexistent {raysep} validate {config}", 0, OK),
    ("closed stdout", "{raysep} validate {config} >&-", 0, ""),
    ("closed stderr", "{raysep} validate {config} 2>&-", 0, OK),
    ("closed streams", "{raysep} validate {config} <&- >&- 2>&-", 0, ""),
    ("closed streams, wrong call", "{raysep} validate none.yaml <&- >&- 2>&-", 2, ""),
    ("full stdout", "{raysep} validate {config} >/dev/full", 1, "No space left on device"),
    ("full stderr, wrong call", "{raysep} validate none.yaml 2>/dev/full", 2, ""),
    ("no directory", "mkdir gone && cd gone && rmdir ../gone && {raysep} validate {config}", 2, "directory is gone"),
    ("nothing at all", "env -i PYTHONPATH=$PYTHONPATH {raysep} validate {config}", 0, OK),
    ("ASCII", "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 {raysep} validate {config} " + CHINESE, 2, r"\u6c49\u5b57"),
    ("unknown locale", "LC_ALL=xx_YY {raysep} validate {config} " + CHINESE, 2, "unknown model"),
    ("a terminal without columns", "COLUMNS=0 {raysep} layers test_vit", 0, "blocks.0"),
    ("a narrow terminal", "COLUMNS=1 {raysep} layers test_vit", 0, "blocks.0"),
    ("no asserts, no docstrings", "PYTHONOPTIMIZE=2 {raysep} validate {config}", 0, OK),
    ("warnings are errors", "PYTHONWARNINGS=error {raysep} validate {config}", 0, OK),
    ("a home of nobody's", "{raysep} run --model test_vit --data '~nosuch/x'", 2, "a user name that is unknown"),
]


# The default tier runs only these.
DEFAULT_TIER = {"nothing at all", "closed stderr", "ASCII"}


def call(command: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "run.yaml"
    # An empty section `compute` needs no check against a cluster, so Ray isn't started.
    file.write_text(yaml.safe_dump({**CONFIG, "compute": {}, "run_dir": str(tmp_path / "out")}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        ["bash", "-c", command.format(raysep=PYTHON, config=file)],
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [pytest.param(*row[1:], id=row[0], marks=() if row[0] in DEFAULT_TIER else pytest.mark.slow) for row in TABLE],
)
def test_environments(command: str, code: int, sentence: str, tmp_path: Path) -> None:
    done = call(command, tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert sentence in said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.slow
def test_a_run_of_a_user_id_without_a_name(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("to become another user takes root and setpriv (Debian: util-linux)")
    tmp_path.chmod(0o777)
    done = call(f"{NOBODY} -u HOME {{raysep}} run {{config}}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report: " in done.stdout


@pytest.mark.slow
def test_a_run_survives_a_broken_stderr_pipe(tmp_path: Path) -> None:
    done = call("{raysep} run {config} 2>&1 >/dev/null | head -1", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "out" / "summary.json").is_file()


@pytest.mark.parametrize("without", ["NO_COLOR=1", "TERM=dumb"])
def test_a_terminal_without_colour_gets_none(without: str, tmp_path: Path) -> None:
    if shutil.which("script") is None:
        pytest.skip("no `script` to make a terminal with (Debian: bsdutils)")
    done = call(f"{without} script -qec '{{raysep}} validate none.yaml' /dev/null", tmp_path)
    assert "none.yaml: 1 problem" in done.stdout
    assert "\x1b[3" not in done.stdout
