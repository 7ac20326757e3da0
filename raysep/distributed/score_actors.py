"""Ray around scoring: a pool of actors, one task a layer. Each task reads one column."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from raysep.config import ScoreConfig
from raysep.distributed.connect import cause, errors_of, lost_errors
from raysep.distributed.placement import Pool
from raysep.embed.shards import read_layer
from raysep.errors import StageError
from raysep.scoring.backends import open_engines
from raysep.scoring.cache import settings_of
from raysep.scoring.memory import return_gpu_memory
from raysep.scoring.scoring import score_layer_somewhere
from raysep.scoring.table import Row, Task
from raysep.storage.retries import PIECE_RETRIES, Attempts
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter, Report

# What is known of a task that is done: the task, its rows, what the worker measured.
Scored = tuple[Task, list[Row], Report]


class Scorer:
    """Scores layers in a process of its own.

    Extraction and scoring never share one: torch's memory pool and cuML's would compete for the GPU.
    """

    def __init__(self, store: Storage, config: ScoreConfig, threads: int) -> None:
        # As many threads as this actor has CPUs, whatever the machine has: torch's, and those of numpy's libraries.
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(threads)
        self._limits = threadpool_limits(threads)
        self._store, self._config = store, config
        self._engines = open_engines(config.backend)
        self._meter = Meter(ray.util.get_node_ip_address())

    def score(self, task: Task) -> tuple[list[Row], Report]:
        """The missing rows of a layer."""
        before = self._iterations
        with self._meter.piece():
            _, y, X = read_layer(self._store, task.shard_set, task.manifest, task.layer.index)
            self._meter.count("bytes_read", X.nbytes)
            scores = score_layer_somewhere(
                X,
                y,
                task.wanted,
                self._engines,
                settings_of(self._config),
                lambda: self._meter.again("memory"),
            )
            self._meter.count("kmeans_iterations", self._iterations - before)
            # Other actors may share the GPU.
            return_gpu_memory()
        return task.rows(scores), self._meter.report

    @property
    def _iterations(self) -> int:
        return sum(engine.iterations for engine in self._engines)


@dataclass
class _Crew:
    """Actors and what each is busy with."""

    start: Callable[[], Any]
    busy: dict[Any, tuple[Any, Task]] = field(default_factory=dict)

    def give(self, actor: Any, task: Task) -> None:
        self.busy[actor.score.remote(task)] = actor, task

    def kill_all(self) -> None:
        # Of a call that was interrupted this may come after the end of Ray, and `kill` would start it anew.
        if ray.is_initialized():
            for actor, _ in self.busy.values():
                ray.kill(actor)


def score_all(
    store: Storage,
    config: ScoreConfig,
    tasks: Sequence[Task],
    pool: Pool,
    on_retry: Callable[[Task], None] | None = None,
) -> Iterator[Scored]:
    """Score tasks on a pool of actors; yields each when it is done, in any order.

    An actor without work is given back at once: another run of the same cluster may wait for its place, and with it
    the last tasks of this one, which sit with an actor that has no place yet. A task whose actor is lost is begun
    again by a new one.

    Raises:
        StageError: a task failed, or lost its actor time and again; what was yielded before stays valid.
    """
    left = deque(tasks)
    kind = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus)(Scorer)
    crew = _Crew(lambda: kind.remote(store, config, pool.threads))
    attempts = Attempts()
    try:
        for _ in range(min(pool.processes, len(tasks))):
            crew.give(crew.start(), left.popleft())
        with errors_of("score"):
            while crew.busy:
                (done,), _ = ray.wait(list(crew.busy), num_returns=1)
                actor, task = crew.busy.pop(done)
                try:
                    rows, report = ray.get(done)
                except lost_errors() as error:
                    lost = attempts.begin(id(task))
                    if lost > PIECE_RETRIES:
                        where = f"{task.layer.name} of {task.shard_set.directory}"
                        raise StageError(f"score: {where} was given to {lost} processes: {cause(error)}") from None
                    if on_retry is not None:
                        on_retry(task)
                    time.sleep(2**lost / 2)
                    crew.give(crew.start(), task)
                    continue
                if left:
                    crew.give(actor, left.popleft())
                else:
                    ray.kill(actor)
                yield task, rows, report
    finally:
        crew.kill_all()
