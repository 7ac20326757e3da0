"""A sweep that loses its lease at each of its writes in turn."""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raysep.config import RunConfig
from raysep.distributed.cluster_shape import Resources
from raysep.errors import RaysepError
from raysep.stages.executor import LocalExecutor
from raysep.storage import lease
from raysep.storage.store import LEASES, Fence, Storage
from raysep.sweeps import launch, rounds
from raysep.sweeps.config import SweepConfig
from raysep.telemetry import Telemetry
from tests.serial import configuration

MATRIX = {"models": [{"name": "test_resnet", "id": "a", "pretrained": False, "image_size": 32, "layers": ["act1"]}]}


def local_cells(
    configs: Sequence[RunConfig], cluster: Resources, parallel: int, fences: tuple[Fence, ...]
) -> Iterator[tuple[int, launch.Outcome]]:
    """Run the cells in this process, with pickled fences as in an actor."""
    for index, config in enumerate(configs):
        yield index, launch.run_cell(config, cluster, pickle.loads(pickle.dumps(fences)))


@pytest.mark.slow
def test_a_sweep_without_its_lease_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = configuration(tmp_path).model_dump(mode="json", exclude={"run_dir", "models", "name"})
    monkeypatch.setattr(launch, "run_cells", local_cells)
    monkeypatch.setattr("raysep.pipeline.open_executor", lambda kind: LocalExecutor())
    monkeypatch.setattr("raysep.report.html.draw", lambda summary: iter([]))
    monkeypatch.setattr("raysep.distributed.connect.connection", LocalExecutor().connect)
    root = tmp_path
    write = Storage._write
    writes: list[str] = []
    take_over_at: list[int] = []

    def counted(self: Storage, target: str, content: bytes) -> None:
        if f"/{LEASES}/" not in target:
            writes.append(target)
        write(self, target, content)
        if len(writes) in take_over_at and f"/{LEASES}/" not in target:
            # The holder stalls until its lease expires, and another process acquires the sweep.
            monkeypatch.setattr(lease, "LEASE_S", 0.0)
            for file in (root / LEASES).iterdir():
                file.unlink()

    monkeypatch.setattr(Storage, "_write", counted)

    def writes_of(name: str, at: int | None = None) -> int:
        nonlocal root
        writes.clear()
        take_over_at[:] = [] if at is None else [at]
        monkeypatch.setattr(lease, "LEASE_S", 120.0)
        root = tmp_path / name
        sweep = SweepConfig.model_validate(
            {"name": "sweep", "root": str(root), "results": f"{root}-results", "base": base, "matrix": MATRIX}
        )
        if at is None:
            assert not rounds.perform(sweep, "once", Telemetry()).failed
        else:
            try:
                rounds.perform(sweep, "once", Telemetry())
            except RaysepError as error:
                refused.append(str(error))
        return len(writes)

    refused: list[str] = []
    all_of_them = writes_of("whole")
    assert all_of_them > 20
    for at in range(1, all_of_them):
        assert writes_of(f"sweep{at}", at) == at
    assert all("another process may have acquired it" in message for message in refused)
    # After the last of them only its log is left to write.
    assert len(refused) >= all_of_them - 3
