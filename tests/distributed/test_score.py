import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysep.config import ScoreConfig
from raysep.config.names import DIAGNOSTIC, DIAGNOSTICS
from raysep.config.registry import METRICS
from raysep.distributed.placement import Pool
from raysep.distributed.score import score_all
from raysep.embedding.shards import Manifest, ShardSet, column, commit, read_layer, read_manifest, write_part
from raysep.models.layers import Layer
from raysep.scoring.backends import open_backend
from raysep.scoring.scoring import score_layer
from raysep.scoring.table import Task
from raysep.storage.store import Storage
from tests.scoring.test_formulas import blobs


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[Storage, list[Task]]:
    run = Storage(str(tmp_path))
    layers = [Layer(i, f"l{i}", i / 2, 8, "mean") for i in range(3)]
    shard_set = ShardSet("m", 0, 0, "unseen")
    vectors = [blobs([25, 25, 25], spread=s, seed=i)[0] for i, s in enumerate((3.0, 2.0, 1.0))]
    y = blobs([25, 25, 25])[1]
    ids = [f"{i:03d}" for i in np.random.default_rng(0).permutation(75)]
    file = write_part(run, shard_set.directory, ids, y.tolist(), vectors, layers, "float32")
    commit(run, shard_set, Manifest("k", 75, [file], layers, {}, "float32", "s", {}))
    manifest = read_manifest(run, shard_set)
    assert manifest is not None
    assert column(0) == "layer_00"
    wanted = [("default", metric) for metric in METRICS] + [(DIAGNOSTIC, name) for name in DIAGNOSTICS]
    return run, [Task(shard_set, manifest, layer, 0, "key", wanted) for layer in layers]


def test_actors_give_the_same_scores_as_one_process(ray_session: None, tasks: tuple[Storage, list[Task]]) -> None:
    run, todo = tasks
    done = list(score_all(run, ScoreConfig(), todo, Pool(2, 1, 0), print))
    found = {task.layer.index: rows for task, rows, _ in done}
    assert len(found) == len(done) == len(todo)
    assert all(report.counts["kmeans_iterations"] > 0 for *_, report in done)
    for task in todo:
        ids, y, X = read_layer(run, task.shard_set, task.manifest, task.layer.index)
        assert ids == sorted(ids)
        serial = task.rows(score_layer(X, y, task.wanted, open_backend("auto"), ScoreConfig()))
        for ours, theirs in zip(found[task.layer.index], serial, strict=True):
            assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.slow
def test_a_layer_whose_worker_is_lost_is_retried(
    ray_session: None, tasks: tuple[Storage, list[Task]], tmp_path: Path
) -> None:
    run, todo = tasks
    once = tmp_path / "once"
    lost: list[Task] = []
    short = ScoreConfig(resamples=0)

    class Killed(Storage):
        """A store that kills the first process that reads from it."""

        def __reduce__(self) -> Any:
            return _killed, (self.full_uri, str(once))

    done = list(score_all(Killed(run.full_uri), short, todo[:2], Pool(1, 1, 0), lost.append))
    assert len(done) == 2
    assert len(lost) == 1
    assert once.exists()


def _killed(uri: str, once: str) -> Storage:
    storage = Storage(uri)

    class Once(type(storage)):  # type: ignore[misc]
        def path(self, relative: str) -> str:
            if not Path(once).exists():
                Path(once).touch()
                os._exit(1)
            return super().path(relative)

    return Once(uri)


def test_no_tasks_need_no_actors() -> None:
    assert list(score_all(Storage("."), ScoreConfig(), [], Pool(1, 1, 0), print)) == []
