"""Addresses that a run can't join are refused in seconds. tests/cluster/test_joining.py has tests with a head."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysep.distributed import joining
from raysep.errors import UsageError
from tests.conftest import REPOSITORY

JOIN = "from raysep.cli import main\n"
JOIN += "import raysep.distributed.joining as j\nfrom raysep.errors import RaysepError\nimport sys\n"
JOIN += "try:\n    print(j.cluster_to_join())\nexcept RaysepError as e:\n    print(e)\n    sys.exit(e.exit_code)\n"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("http://127.0.0.1:8265", "a dashboard, which takes jobs: run `raysep submit CONFIG --address http://127"),
        ("https://head", "set RAY_ADDRESS=head:6379"),
        ("ray://head:10001", "Ray Tune doesn't work through Ray Client. Submit the run as a job"),
        ("127.0.0.1", "expected HOST:PORT, as in 127.0.0.1:6379"),
        ("head:", "expected HOST:PORT, as in head:6379"),
        ("head:port", "got 'head:port'"),
        ("head:99999", "got 'head:99999'"),
        ("::1:6379", "got '::1:6379'"),
        ("redis://head:6379", "got 'redis://head:6379'"),
    ],
)
def test_invalid_addresses_are_refused(named: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(UsageError) as refused:
        joining.check_ray_address()
    assert words in str(refused.value)
    assert "unset RAY_ADDRESS" in str(refused.value)
    assert "token" not in str(refused.value)


@pytest.mark.parametrize("named", ["", "auto", "local", "head:6379", "[::1]:6379", " 10.0.0.1:6379 "])
def test_valid_addresses_are_accepted(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert joining.check_ray_address() == named.strip()


@pytest.fixture
def mute() -> Iterator[str]:
    """Address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def join(**changes: str) -> tuple[int, str, float]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**environment, **changes},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, time.monotonic() - began


def test_an_address_without_a_server(tmp_path: Path) -> None:
    # Ray itself takes two minutes; the bound allows for other tests on the same machine.
    code, said, seconds = join(RAY_ADDRESS="127.0.0.1:1")
    assert (code, seconds < 20) == (1, True)
    assert "RAY_ADDRESS is 127.0.0.1:1, and no Ray cluster answers there (Connection refused)" in said
    assert "token" not in said
    code, said, _ = join(RAY_ADDRESS="nosuch.invalid:6379")
    assert code == 1
    assert "no Ray cluster answers there" in said


@pytest.mark.slow
def test_a_server_that_never_answers(mute: str, tmp_path: Path) -> None:
    code, said, seconds = join(RAY_ADDRESS=mute)
    assert (code, seconds < 25) == (1, True)
    assert "the server there does not answer like a Ray cluster" in said
    assert "token" not in said
    # An address recorded by `ray start` below TMPDIR, which Slurm sets.
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(mute)
    for name in ("TMPDIR", "RAY_TMPDIR"):
        code, said, _ = join(**{name: str(tmp_path)})
        assert code == 1
        assert "`ray start` has recorded a cluster at " in said
        assert "RAY_ADDRESS=local starts another Ray" in said


def test_the_recorded_address_of_a_lost_head_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert join(TMPDIR=str(tmp_path))[:2] == (0, "None\n")
    assert join(TMPDIR=str(tmp_path), RAY_ADDRESS="local")[:2] == (0, "None\n")
