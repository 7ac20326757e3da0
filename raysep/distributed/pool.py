"""The actor pool of stages and sweeps, with retries of tasks whose worker is lost.

Such a task goes to a new worker, with exponential backoff, up to `retries` times. An error that the task itself raises
is not retried, since it would recur.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysep.distributed.connect import cause, worker_loss_errors
from raysep.storage.retries import WORKER_RETRIES

Task = TypeVar("Task")
Result = TypeVar("Result")
FIRST_WAIT_S = 1.0


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A finished or failed task.

    Attributes:
        result: returned by the worker; None if the task failed.
        error: reason of the failure; None if the task finished.
        lost: number of workers that were lost while running it.
        seconds: time since the first worker got the task.
    """

    task: Task
    result: Result | None
    error: str | None
    lost: int
    seconds: float = field(default=0.0, compare=False)


class Worker:
    """An actor with one function. `build` creates it, with its models and clients, in the actor's process."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._function = build()

    def call(self, task: Any) -> Any:
        """Apply the function to a task."""
        return self._function(task)


def on_this_node() -> dict[str, Any]:
    """Ray options of actors that reserve no CPU and run on the driver's node."""
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def run_tasks(
    tasks: Sequence[Task],
    build: Callable[[int], Callable[[], Callable[[Task], Result]]],
    size: int,
    options: dict[str, Any],
    *,
    name: str,
    retries: int = WORKER_RETRIES,
    on_retry: Callable[[Task], None] = lambda _: None,
) -> Iterator[Done[Task, Result]]:
    """Run tasks on at most `size` actors; yields each task when it has finished or failed, in any order.

    An idle actor is killed at once. Its resources go to other runs on the cluster, or to actors of this run that hold
    its last tasks and wait to be scheduled.

    Args:
        build: called with the slot of an actor (0 to size - 1); returns a factory, which the actor calls once to get
            the function that performs its tasks.
        options: Ray options of each actor: num_cpus, num_gpus, scheduling_strategy.
        name: name of the actors, in the process list and on the dashboard.
        retries: maximum number of retries of a task whose worker is lost.
        on_retry: called before each retry.
    """
    kind: Any = ray.remote(type(name, (Worker,), {}))
    waiting = deque(tasks)
    busy: dict[Any, tuple[Any, int, Task, int, float]] = {}

    def start(slot: int) -> Any:
        return kind.options(**options).remote(build(slot))

    def assign(actor: Any, slot: int, task: Task, lost: int = 0, began: float | None = None) -> None:
        busy[actor.call.remote(task)] = actor, slot, task, lost, time.monotonic() if began is None else began

    try:
        for slot in range(min(size, len(tasks))):
            assign(start(slot), slot, waiting.popleft())
        while busy:
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            actor, slot, task, lost, began = busy.pop(ready)
            result, error = None, None
            try:
                result = ray.get(ready)
            except RayError as failure:
                error = cause(failure)
                if isinstance(failure, worker_loss_errors()):
                    lost += 1
                    ray.kill(actor)
                    if lost <= retries:
                        on_retry(task)
                        time.sleep(FIRST_WAIT_S * 2 ** (lost - 1))
                        assign(start(slot), slot, task, lost, began)
                        continue
                    actor = start(slot) if waiting else None
            if waiting:
                assign(actor, slot, waiting.popleft())
            elif actor is not None:
                ray.kill(actor)
            yield Done(task, result, error, lost, time.monotonic() - began)
    finally:
        # After an interrupt Ray may already be shut down, and `kill` would restart it.
        if ray.is_initialized():
            for actor, *_ in busy.values():
                ray.kill(actor)
