"""Scoring on a pool of actors, one task per layer. Each task reads one column of a shard set."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import ray

from raysep.config import ScoreConfig
from raysep.distributed.placement import Pool
from raysep.distributed.pool import run_tasks
from raysep.errors import StageError
from raysep.scoring.table import Row, Task
from raysep.scoring.worker import Scored, Scorer
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter, Report


def _scorer(store: Storage, config: ScoreConfig, threads: int) -> Callable[[Task], tuple[list[Row], Report]]:
    """Create the scoring function of an actor. Embedding uses other actors: memory pools of torch and cuML compete."""
    # Limit the threads of torch and of NumPy's libraries to the CPUs of this actor; the default is all CPUs.
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)
    return Scorer(store, config, Meter(ray.util.get_node_ip_address()))


def score_all(
    store: Storage, config: ScoreConfig, tasks: Sequence[Task], pool: Pool, on_retry: Callable[[Task], None]
) -> Iterator[Scored]:
    """Score tasks on a pool of actors; yields the scores of each finished task, in any order.

    Raises:
        StageError: a task failed, or lost too many workers; scores that are already yielded stay valid.
    """
    build = partial(_scorer, store, config, pool.threads)
    options = {"num_cpus": pool.cpus, "num_gpus": pool.gpus}
    for done in run_tasks(tasks, lambda _: build, pool.processes, options, name="Scorer", on_retry=on_retry):
        if done.result is None:
            where = f"{done.task.layer.name} of {done.task.shard_set.directory}"
            lost = f" lost {done.lost} workers:" if done.lost else ""
            raise StageError(f"score: {where}:{lost} {done.error}")
        rows, report = done.result
        yield done.task, rows, report
