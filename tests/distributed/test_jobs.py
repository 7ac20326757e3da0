from pathlib import Path

import pytest

from raysep.distributed import jobs
from raysep.errors import UsageError


def test_targets_must_be_reachable_from_the_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    here, there = "http://127.0.0.1:8265", "http://head:8265"
    assert jobs.target_at("runs/x", here) == str(tmp_path / "runs/x")
    assert jobs.target_at("s3://b/x", there) == "s3://b/x"
    assert jobs.target_at("/shared/x", there) == "/shared/x"
    with pytest.raises(UsageError, match="runs/x, a directory of this machine, but http://head:8265 is another"):
        jobs.target_at("runs/x", there)
