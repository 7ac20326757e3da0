"""Rounds on a real cluster, with cells that run and cells that fail."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raysep.distributed.cluster_shape import Resources
from raysep.errors import ConfigError, RaysepError
from raysep.storage import lease
from raysep.storage.store import Storage
from raysep.sweeps import leaderboard, results, rounds
from raysep.sweeps.config import SweepConfig
from raysep.telemetry import Telemetry
from tests.conftest import TINY_CNN

BASE = {
    "data": {"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9]}, "max_per_class": {"unseen": 20}},
    "baselines": {"untrained": False, "pixels": None},
    "compute": {"embed_actors": 1, "score_actors": 1},
    "embed": {"splits": ["unseen"]},
    "score": {"metrics": ["nmi"], "resamples": 20, "max_classes": None},
}
GONE = {"name": "test_vit", "id": "gone", "pretrained": "nowhere.safetensors"}
BROKEN = {"name": "test_vit", "id": "broken", "pretrained": False, "kwargs": {"depthh": 1}}


def sweep(tmp_path: Path, models: list[dict[str, Any]], **sections: Any) -> SweepConfig:
    values = {"name": "s", "root": str(tmp_path / "sweep"), "base": BASE, "matrix": {"models": models}, **sections}
    return SweepConfig.model_validate({**values, "monitoring": {"port": None}})


def perform(config: SweepConfig, label: str) -> tuple[rounds.Round, Telemetry]:
    telemetry = Telemetry(Console(file=io.StringIO()))
    return rounds.perform(config, label, telemetry), telemetry


@pytest.mark.slow
def test_failed_cells_affect_no_other_and_are_run_again(ray_session: None, tmp_path: Path) -> None:
    config = sweep(tmp_path, [GONE, BROKEN, TINY_CNN])
    plans = rounds.plan(config, "r1", rounds.rows_of(config))
    assert [(p.cell.name, p.done, p.problem is not None) for p in plans] == [
        ("gone", False, True),
        ("broken", False, False),
        ("test_resnet", False, False),
    ]
    first, telemetry = perform(config, "r1")
    states = {row["cell"]: row["state"] for row in first.rows}
    assert states == {"gone": "failed", "broken": "failed", "test_resnet": "done"}
    errors = {row["cell"]: row["error"] for row in first.failed}
    assert "no file nowhere.safetensors" in errors["gone"]
    assert "depthh" in errors["broken"]
    value = telemetry.metrics.registry.get_sample_value
    assert value("raysep_sweep_cells", {"sweep": "s", "state": "done"}) == 1
    assert value("raysep_sweep_last_success_timestamp_seconds", {"sweep": "s"}) is None
    done = next(row for row in first.rows if row["state"] == "done")
    assert done["seconds"] > 0
    assert done["worker_seconds"] > 0
    assert done["machines"] == "1 x 2 CPUs"
    store = Storage(done["run_dir"])
    written = store.fs.get_file_info(store.path("scores.parquet")).mtime_ns

    # Again: only failed cells run again, and each cell keeps one row.
    second, _ = perform(config, "r1")
    assert {row["cell"]: row["state"] for row in second.rows} == states
    assert store.fs.get_file_info(store.path("scores.parquet")).mtime_ns == written
    assert next(row for row in second.rows if row["state"] == "done") == done
    assert len(results.rows(Storage(config.results))) == 3

    # Without the failing cells the round succeeds.
    good, telemetry = perform(sweep(tmp_path, [TINY_CNN]), "r1")
    assert not good.failed
    success = telemetry.metrics.registry.get_sample_value("raysep_sweep_last_success_timestamp_seconds", {"sweep": "s"})
    assert success is not None
    page = Storage(config.root).read_bytes(f"report/r1/{leaderboard.PAGE}").decode()
    assert "test_resnet" in page

    # Compared with a far better round.
    better = {**done, "round": "r0", "date": "2020-01-01", "corrected_g": 3.0, "corrected_low": 2.9}
    better |= {"corrected_high": 3.1, "seconds": 0.1, "at": done["at"].replace(year=2020)}
    results.put(Storage(config.results), better)
    gated, telemetry = perform(sweep(tmp_path, [TINY_CNN], baseline={}), "r1")
    assert ["g fell by" in line for line in gated.verdict.regressions] == [True, False], gated.verdict
    assert "times the median of 1 earlier" in gated.verdict.regressions[1]
    assert telemetry.metrics.registry.get_sample_value("raysep_sweep_regressions", {"sweep": "s"}) == 2
    # Another sweep in the same table has cells of the same names, but not the results of this one.
    other = sweep(tmp_path, [TINY_CNN], name="other", results=config.results)
    assert [p.done for p in rounds.plan(other, "r1", rounds.rows_of(other))] == [False]
    assert [p.done for p in rounds.plan(config, "r1", rounds.rows_of(config))] == [False, False, True]
    with pytest.raises(ConfigError, match="no round or day never"):
        perform(sweep(tmp_path, [TINY_CNN], baseline={"round": "never"}), "r1")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    config = sweep(tmp_path, [GONE])
    with lease.held(Storage(config.root), "the sweep"), pytest.raises(RaysepError, match="is locked by process"):
        perform(config, "r1")


def test_shares_of_a_cluster_never_overlap() -> None:
    desk, nodes = Resources(((8.0, 2.0),)), Resources(((4.0, 1.0), (4.0, 0.0), (16.0, 2.0)))
    headless = Resources(((0.0, 0.0), (4.0, 0.0), (3.0, 0.0)), ((8.0, 0.0),))
    for cluster in (desk, nodes, headless, Resources(((2.0, 0.0),))):
        for wanted in (None, 1, 2, 3, 5, 50):
            of = cluster.parts(wanted)
            parts = [cluster.share(position, of) for position in range(of)]
            assert sum(part.cpus for part in parts) <= cluster.cpus
            assert sum(part.gpus for part in parts) <= cluster.gpus
            # Each share can run a task, on a GPU if the cluster has any.
            assert all(part.slots(1, float(cluster.gpus > 0)) > 0 for part in parts), (cluster, of, parts)
    assert desk.parts(None) == 2
    assert nodes.parts(None) == 3
    assert headless.parts(None) == 3
    assert Resources(((2.0, 0.0),)).parts(None) == 1
