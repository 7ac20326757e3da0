"""Ray around scoring: a pool of actors, one task a layer. Each task reads one column."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.util import ActorPool

from raysep.cluster import errors_of
from raysep.config import ScoreConfig
from raysep.embed.shards import read_layer
from raysep.planning import Pool
from raysep.separability.backends import open_engine
from raysep.separability.layer import Settings
from raysep.separability.scoring import score_layer
from raysep.separability.table import Row, Task
from raysep.storage import Storage


class Scorer:
    """Scores layers in a process of its own.

    Extraction and scoring never share one: torch's memory pool and cuML's would compete for the GPU.
    """

    def __init__(self, run: Storage, config: ScoreConfig, threads: int) -> None:
        # scikit-learn's own threads: as many as this actor has CPUs, whatever the machine has.
        from threadpoolctl import threadpool_limits

        self._limits = threadpool_limits(threads)
        self._run, self._config = run, config
        self._engine = open_engine(config.backend)

    def score(self, number: int, task: Task) -> tuple[int, list[Row]]:
        """The task's number, since results come in any order, and the missing rows of its layer."""
        _, y, X = read_layer(self._run, task.shard_set, task.manifest, task.layer.index)
        return number, task.rows(score_layer(X, y, task.wanted, self._engine, settings_of(self._config)))


def settings_of(config: ScoreConfig) -> Settings:
    """What `score` of the configuration says of how layers are scored."""
    return Settings(config.seed, config.resamples, config.max_classes)


def score_all(run: Storage, config: ScoreConfig, tasks: Sequence[Task], pool: Pool) -> Iterator[tuple[Task, list[Row]]]:
    """Score tasks on a pool of actors; yields each when it is done, in any order.

    Raises:
        StageError: a task failed; what was yielded before stays valid.
    """
    if not tasks:
        return
    actor = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus)(Scorer)
    actors: list[Any] = [actor.remote(run, config, pool.threads) for _ in range(min(pool.processes, len(tasks)))]
    try:
        numbered = list(enumerate(tasks))
        with errors_of("score"):
            for number, rows in ActorPool(actors).map_unordered(lambda a, item: a.score.remote(*item), numbered):
                yield tasks[number], rows
    finally:
        for handle in actors:
            ray.kill(handle)
