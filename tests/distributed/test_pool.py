"""The pool of actors against a plain loop."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from raysep.distributed.pool import Done, run_tasks


def square(_: int) -> Callable[[], Callable[[int], int]]:
    return lambda: lambda task: task * task


def test_every_task_comes_back_once_with_its_result(ray_session: None) -> None:
    done = list(run_tasks(list(range(7)), square, 2, {"num_cpus": 1}, name="Squarer"))
    assert sorted(done, key=lambda item: item.task) == [Done(task, task * task, None, 0) for task in range(7)]


def test_no_tasks_need_no_actors() -> None:
    assert list(run_tasks([], square, 2, {"num_cpus": 1}, name="Squarer")) == []


def test_a_lost_worker_is_replaced_an_error_is_not_retried_and_others_go_on(ray_session: None, tmp_path: Path) -> None:
    def build(slot: int) -> Callable[[], Callable[[str], str]]:
        def work(task: str) -> str:
            marker = tmp_path / task
            if task.startswith("lost") and (task == "lost for good" or not marker.exists()):
                marker.touch()
                os._exit(1)
            if task == "wrong":
                raise ValueError("no such layer")
            return f"{task} in slot {slot}"

        return lambda: work

    retried: list[str] = []
    tasks = ["a", "lost once", "wrong", "b"]
    found = {item.task: item for item in run_tasks(tasks, build, 1, {"num_cpus": 1}, name="W", on_retry=retried.append)}
    assert set(found) == set(tasks)
    assert [found[task].result for task in ("a", "lost once", "b")] == [
        f"{t} in slot 0" for t in ("a", "lost once", "b")
    ]
    assert (found["lost once"].lost, retried) == (1, ["lost once"])
    assert found["wrong"].error is not None
    assert "no such layer" in found["wrong"].error
    (lost,) = run_tasks(["lost for good"], build, 1, {"num_cpus": 1}, name="W", retries=0)
    assert (lost.result, lost.lost) == (None, 1)
    assert lost.error


def test_a_task_that_keeps_losing_workers_is_given_up(ray_session: None) -> None:
    def build(slot: int) -> Callable[[], Callable[[int], int]]:
        return lambda: lambda task: os._exit(task)

    (done,) = run_tasks([1], build, 1, {"num_cpus": 1}, name="W", retries=1)
    assert (done.result, done.lost) == (None, 2)


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_not_read_to_the_end_leaves_no_actor(ray_session: None, size: int) -> None:
    import ray

    stream = run_tasks(list(range(4)), square, size, {"num_cpus": 1}, name="Squarer")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert ray.is_initialized()
