"""Scores one layer of a shard set at a time, from its Parquet files."""

from raysep.config import ScoreConfig
from raysep.embedding.shards import read_layer
from raysep.scoring.backends import open_with_fallback
from raysep.scoring.memory import return_gpu_memory
from raysep.scoring.scoring import score_layer_with_fallback
from raysep.scoring.table import Row, Task
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter, Report

# A scored task: the task, its rows, the worker's report.
Scored = tuple[Task, list[Row], Report]


class Scorer:
    """Scores tasks one after another, with the backends of a configuration."""

    def __init__(self, store: Storage, config: ScoreConfig, meter: Meter) -> None:
        self._store, self._config, self._meter = store, config, meter
        self._backends = open_with_fallback(config.backend)

    def __call__(self, task: Task) -> tuple[list[Row], Report]:
        """Compute the missing rows of a layer; also return the worker's counters and seconds."""
        before = self._iterations
        with self._meter.piece():
            _, y, X = read_layer(self._store, task.shard_set, task.manifest, task.layer.index)
            self._meter.count("bytes_read", X.nbytes)
            scores = score_layer_with_fallback(
                X, y, task.wanted, self._backends, self._config, lambda: self._meter.again("memory")
            )
            self._meter.count("kmeans_iterations", self._iterations - before)
            # Other actors may share the GPU.
            return_gpu_memory()
        return task.rows(scores), self._meter.report

    @property
    def _iterations(self) -> int:
        return sum(backend.iterations for backend in self._backends)
