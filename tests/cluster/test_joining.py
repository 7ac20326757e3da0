"""Runs that join a head: with its token, from its TMPDIR, by its address; and what they say where they can't."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.head import RAY, Head, processes_of_session, running
from tests.cluster.test_jobs import CONFIG
from tests.conftest import REPOSITORY, TINY_VIT

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.xdist_group("cluster")]
# More than this machine has: a Ray that was started instead would be another one.
CPUS = (os.cpu_count() or 1) + 1
NEW_VERSIONS = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
was = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", b"cluster"))
client.internal_kv_put(b"CLUSTER_METADATA", json.dumps({**was, **json.loads(sys.argv[2])}).encode(), True, b"cluster")
"""


@pytest.fixture(scope="module", params=["home", "disabled"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    if not Path(RAY).is_file():
        pytest.skip("no `ray` command beside this Python")
    with running(tmp_path_factory.mktemp("head"), request.param, CPUS) as started:
        yield started


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, "run_dir": str(tmp_path / "out")}))
    return str(file)


def run(head: Head, config: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """A run whose environment names no mode: as a user has it."""
    return head.run(sys.executable, "-m", "raysep", "run", config, **{"RAY_AUTH_MODE": None, **changes})


def only_with_tokens(head: Head) -> None:
    """Once is enough, on the head that asks for more."""
    if head.environment.get("RAY_AUTH_MODE") == "disabled":
        pytest.skip("this head asks for no token")


def joined(config: str) -> bool:
    manifest = json.loads((Path(config).parent / "out" / "manifest.json").read_text())
    return bool(manifest["machines"] == {f"{CPUS} CPUs": 1})


def test_the_ray_of_ray_start_is_found_where_ray_itself_looks(head: Head, config: str) -> None:
    only_with_tokens(head)
    done = run(head, config, TMPDIR=head.temporary)
    assert done.returncode == 0, done.stderr
    assert joined(config)


def test_an_address_is_joined_with_the_token_that_is_there(head: Head, config: str) -> None:
    # A head without tokens, too, whatever the mode of the environment: its workers could not answer a driver with one.
    nobody = "http://127.0.0.1:9"
    done = run(head, config, RAY_ADDRESS=head.gcs, RAY_AUTH_MODE="token", HTTP_PROXY=nobody, http_proxy=nobody)
    assert done.returncode == 0, done.stderr
    assert joined(config)


def test_a_token_that_is_missing_or_wrong_is_said_at_once(head: Head, config: str, tmp_path: Path) -> None:
    only_with_tokens(head)
    for changes, words in (
        ({"HOME": str(tmp_path)}, "which requires a token, but none is set here. Set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN": "f" * 32}, "which refuses the token of RAY_AUTH_TOKEN."),
    ):
        began = time.monotonic()
        done = run(head, config, RAY_ADDRESS=head.gcs, **changes)
        # Ray itself takes 40 s and more.
        assert time.monotonic() - began < 35
        assert done.returncode == 1
        assert f"RAY_ADDRESS is {head.gcs}, {words}" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("versions", [{"ray_version": "2.9.3"}, {"python_version": "3.9.1"}])
def test_other_versions_are_named(head: Head, config: str, versions: dict[str, str]) -> None:
    only_with_tokens(head)

    def put(values: dict[str, str]) -> None:
        done = head.run(sys.executable, "-c", NEW_VERSIONS, head.gcs, json.dumps(values), RAY_AUTH_MODE="token")
        assert done.returncode == 0, done.stderr

    import platform

    import ray

    put(versions)
    try:
        done = run(head, config, RAY_ADDRESS=head.gcs)
    finally:
        put({"ray_version": ray.__version__, "python_version": platform.python_version()})
    assert done.returncode == 1
    theirs = {"ray_version": ray.__version__, "python_version": platform.python_version(), **versions}
    assert (
        f"which runs Ray {theirs['ray_version']} on Python {theirs['python_version']}, but this process runs Ray"
        in done.stderr
    )
    assert "raysep submit" in done.stderr
    assert "token" not in done.stderr
    assert "Traceback" not in done.stderr


def test_no_proxy_stands_between_this_machine_and_itself(head: Head) -> None:
    nobody = "http://127.0.0.1:9"
    listed = head.run(sys.executable, "-m", "raysep", "jobs", HTTP_PROXY=nobody, http_proxy=nobody, ALL_PROXY=nobody)
    assert listed.returncode == 0, listed.stderr


def test_the_last_line_after_a_loss_says_what_is_lost_and_what_is_kept(tmp_path: Path) -> None:
    """Ray's core ends the process in C++, for want of a head: nothing in Python hears of it."""
    out, file = tmp_path / "out", tmp_path / "run.yaml"
    long = {**CONFIG, "finetune": {"steps": 50_000, "evaluate_at": [50_000]}, "models": [TINY_VIT]}
    file.write_text(yaml.safe_dump({**long, "run_dir": str(out)}))
    (tmp_path / "head").mkdir()
    with running(tmp_path / "head", "disabled", CPUS) as head:
        # Sixty seconds, as Ray has it, are a test of patience.
        environment = {**head.environment, "RAY_ADDRESS": head.gcs, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
        process = subprocess.Popen(
            [sys.executable, "-m", "raysep", "run", str(file)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        try:
            wait_for_training(process, out)
            for pid in processes_of_session(head.session):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() in {"gcs_server", "raylet"}:
                        os.kill(pid, signal.SIGKILL)
            said, last = process.communicate(timeout=150)
        finally:
            process.kill()
    assert process.returncode == 1, (said, last)
    line = last.strip().splitlines()[-1]
    assert "Traceback" not in last
    assert line.startswith("error: "), last
    assert "the same command resumes the run" in line
    log = line.rpartition(" is in ")[2]
    assert Path(log).is_file(), line
    Path(log).unlink()


def wait_for_training(process: "subprocess.Popen[str]", out: Path) -> None:
    began = time.monotonic()
    while not list(out.glob("checkpoints/**/*")) and time.monotonic() - began < 90:
        assert process.poll() is None
        time.sleep(0.5)
    time.sleep(5)
