"""The pool of actors that every stage and every sweep runs its work on, and its one retry rule.

A task whose worker is lost goes to a new worker, with exponential backoff, up to `retries` times. An error of the task
itself is not retried: it would come again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysep.distributed.connect import cause, lost_errors
from raysep.storage.retries import WORKER_RETRIES

Task = TypeVar("Task")
Result = TypeVar("Result")
FIRST_WAIT_S = 1.0


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A task that is over.

    Attributes:
        result: what the worker returned; None where it failed.
        error: why it failed; None where it did not.
        lost: workers that were lost with it.
    """

    task: Task
    result: Result | None
    error: str | None
    lost: int


class Worker:
    """An actor with one function, which `build` makes in the actor's process: models and clients live there."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._function = build()

    def call(self, task: Any) -> Any:
        """The function's result for a task."""
        return self._function(task)


def on_this_node() -> dict[str, Any]:
    """Options of actors that take no CPU, and live and die with the driver's node."""
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
    """Run tasks on at most `size` actors; yields each task when it is over, in any order.

    An idle actor is released at once: another run of the same cluster may wait for its place, and with it the last
    tasks of this one, which sit with an actor that is not placed yet.

    Args:
        build: for the slot of an actor (0 to size - 1), what makes the actor's function in its process.
        options: of Ray for each actor: num_cpus, num_gpus, scheduling_strategy.
        name: of the actors, in the list of processes and on the dashboard.
        retries: of a task whose worker is lost.
        on_retry: called before each retry.
    """
    kind: Any = ray.remote(type(name, (Worker,), {}))
    waiting = deque((task, 0) for task in tasks)
    busy: dict[Any, tuple[Any, int, Task, int]] = {}

    def start(slot: int) -> Any:
        return kind.options(**options).remote(build(slot))

    def assign(actor: Any, slot: int, task: Task, lost: int) -> None:
        busy[actor.call.remote(task)] = actor, slot, task, lost

    try:
        for slot in range(min(size, len(tasks))):
            assign(start(slot), slot, *waiting.popleft())
        while busy:
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            actor, slot, task, lost = busy.pop(ready)
            result, error = None, None
            try:
                result = ray.get(ready)
            except RayError as failure:
                error = cause(failure)
                if isinstance(failure, lost_errors()):
                    lost += 1
                    ray.kill(actor)
                    if lost <= retries:
                        on_retry(task)
                        time.sleep(FIRST_WAIT_S * 2 ** (lost - 1))
                        assign(start(slot), slot, task, lost)
                        continue
                    actor = start(slot) if waiting else None
            if waiting:
                assign(actor, slot, *waiting.popleft())
            elif actor is not None:
                ray.kill(actor)
            yield Done(task, result, error, lost)
    finally:
        # After an interrupt Ray may be shut down already, and `kill` would start it again.
        if ray.is_initialized():
            for actor, *_ in busy.values():
                ray.kill(actor)
