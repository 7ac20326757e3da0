"""Jobs of a head with token authentication: Ray's own client, and ours."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.head import RAY, Head, running
from tests.conftest import TINY_VIT

CONFIG = {
    "data": {
        "source": {"kind": "digits"},
        "split": {"unseen": [7, 8, 9], "seen": [0, 1]},
        "max_per_class": {"unseen": 20},
    },
    "models": [TINY_VIT],
    "embed": {"splits": ["unseen"]},
    "score": {"metrics": ["nmi"], "resamples": 0},
    "baselines": {"untrained": False, "pixels": None},
    "compute": {"embed_actors": 1, "score_actors": 1},
}
RAYSEP = str(Path(sys.executable).parent / "raysep")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("cluster")]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    if not Path(RAY).is_file():
        pytest.skip("no `ray` command beside this Python")
    with running(tmp_path_factory.mktemp("head")) as started:
        yield started


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return str(file)


def test_rays_own_client_and_ours_run_the_entry_point_and_exit_as_it_does(
    head: Head, config: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    submit = [RAY, "job", "submit", "--runtime-env", "jobs/runtime_env.yaml", "--working-dir", ".", "--"]
    done = head.run(*submit, "python", "jobs/evaluate.py", config, "--run-dir", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert " layers; " in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert {item["stage"] for item in summary["ran"]} == {"finetune", "embed", "score"}

    # Ours follows the log, and goes on where the other one ended.
    done = head.run(RAYSEP, "submit", config, "--run-dir", str(out), "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report: " in done.stdout
    assert done.stdout.count("nothing left to do") == 4
    job = re.search(r"submitted (\S+):", done.stderr)
    assert job is not None

    # The run's own answer to another configuration in the same place.
    other = head.run(
        RAYSEP, "submit", config, "score.metrics=[nn1]", "report.metric=nn1", "--run-dir", str(out), "--wait"
    )
    assert other.returncode == 2, other.stdout + other.stderr
    assert "belongs to another configuration" in other.stdout

    listed = head.run(RAYSEP, "jobs")
    assert re.search(rf"{job.group(1)}.*SUCCEEDED", listed.stdout)


def test_a_sweep_is_submitted_like_a_run(head: Head, tmp_path: Path) -> None:
    file, root = tmp_path / "sweep.yaml", tmp_path / "sweep"
    base = {key: value for key, value in CONFIG.items() if key != "models"}
    file.write_text(yaml.safe_dump({"name": "s", "root": str(root), "base": base, "matrix": {"models": [TINY_VIT]}}))
    done = head.run(RAYSEP, "submit", str(file), "--wait", "--code", ".")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "report" / "once" / "leaderboard.csv").is_file()


def test_a_job_is_stopped_and_an_unknown_one_is_named(head: Head, config: str, tmp_path: Path) -> None:
    done = head.run(RAYSEP, "submit", config, "--run-dir", str(tmp_path / "out"))
    assert done.returncode == 0
    stopped = head.run(RAYSEP, "stop", done.stdout.strip())
    assert stopped.returncode == 0
    assert re.search("STOPPED|SUCCEEDED", stopped.stdout)
    unknown = head.run(RAYSEP, "stop", "nobody")
    assert unknown.returncode == 2
    assert "no job nobody" in unknown.stderr


def test_without_a_token_it_is_said_what_to_set(head: Head, config: str, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": None, "RAY_AUTH_MODE": None}
    for arguments in (["submit", config], ["jobs"], ["stop", "x"]):
        done = head.run(RAYSEP, *arguments, **home)
        assert done.returncode == 1, done.stdout
        assert "RAY_AUTH_MODE=token" in done.stderr
        assert "Traceback" not in done.stderr
    wrong = head.run(RAYSEP, "jobs", **home, RAY_AUTH_TOKEN="f" * 32)
    assert wrong.returncode == 1
    assert "token" in wrong.stderr


def test_what_is_wrong_is_said_before_anything_is_submitted(head: Head, config: str) -> None:
    for arguments, code, words in (
        ([config, "models.0.nam=x"], 2, "Did you mean 'name'"),
        ([config, "--address", "127.0.0.1:8265"], 2, "expected http://HOST:8265"),
        ([config, "--code", "nowhere"], 2, "expected a checkout"),
        ([config, "--address", "http://127.0.0.1:1"], 1, "Is a cluster running there"),
    ):
        done = head.run(RAYSEP, "submit", *arguments)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "submitted" not in done.stderr


@pytest.mark.parametrize("stop", [False, True])
def test_a_deadline_ends_the_command_and_with_the_option_the_job(head: Head, tmp_path: Path, stop: bool) -> None:
    file = tmp_path / "run.yaml"
    long = {**CONFIG, "finetune": {"steps": 50_000, "evaluate_at": [50_000]}, "run_dir": str(tmp_path / "out")}
    file.write_text(yaml.safe_dump(long))
    command = [RAYSEP, "submit", str(file), "--wait", *(["--stop-on-exit"] if stop else [])]
    # A proxy that is not there stands between nobody and this machine.
    environment = {**head.environment, "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    job = re.search(r"submitted (\S+):", err)
    assert job is not None
    assert last.startswith(f"by SIGTERM: {job.group(1)}{': STOPPED' if stop else ' goes on; `raysep stop'}"), err
    if not stop:
        assert "STOPPED" in head.run(RAYSEP, "stop", job.group(1)).stdout
