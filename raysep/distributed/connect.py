"""Start or join Ray, and say what it has. Nothing else in the package starts or stops Ray."""

import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysep.distributed import joining, limits
from raysep.distributed.cluster_shape import Resources, Shape, launcher_shapes
from raysep.errors import RaysepError, StageError
from raysep.process import signals

# How long a GPU is waited for to say how much memory it has.
GPU_ANSWER_S = 20
OUR_ERROR = re.compile(r"^raysep\.[\w.]+: ")
ERROR_LINE = re.compile(r"(?!ray\.)[\w.]*(Error|Exception)\b[^:]*: ")


@contextmanager
def connection(verbose: bool = False, may_add: Sequence[Shape] = ()) -> Iterator[Resources]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, else start Ray on this machine.

    A Ray that was started here is stopped here; one that was joined is left running.

    Args:
        verbose: let Ray's own lines through.
        may_add: nodes that the autoscaler could add, where Ray itself doesn't know of them.

    Raises:
        UsageError: RAY_ADDRESS is no address that a run can join.
        RaysepError: the cluster can't be joined.
    """
    prepare()
    if not verbose:
        # Tune's new output prints a frame even where it is told to print nothing; its old one doesn't.
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield _resources(may_add)
        return
    address = joining.cluster_to_join()
    import ray

    quiet: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
        try:
            if address is None:
                joining.authenticate_own()
                ray.init(address="local", include_dashboard=False, **limits.ray_arguments(), **quiet)
            else:
                ray.init(address=address, **quiet)
        except Exception as error:
            # Ray raises errors of any kind. A cluster answered a moment ago; or this machine has no room for a Ray.
            what = "can't be started on this machine" if address is None else f"can't be joined at {address}"
            raise RaysepError(f"Ray {what}: {' '.join(str(error).split())}") from error
    # Ray ends the process at SIGTERM, in a way of its own.
    signals.rearm()
    try:
        yield _resources(may_add)
    finally:
        ray.shutdown()


def prepare() -> None:
    """Set what Ray reads when it is imported, and Tune when it runs; a user's own setting wins."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def errors_of(stage: str) -> Iterator[None]:
    """Turn what Ray raises for a worker's error into a StageError that says what went wrong there."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise StageError(f"{stage}: {cause(error)}") from error


def lost_errors() -> tuple[type[Exception], ...]:
    """What Ray raises where a process or a node is gone, and no error of ours is why."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
        exceptions.NodeDiedError,
    )


def cause(error: BaseException | None) -> str:
    """What went wrong in a worker, on one line: Ray wraps the error, and has its traceback as text."""
    if error is None:
        return "it never ran"
    chain: list[BaseException] = [error]
    while (inner := getattr(chain[-1], "cause", None) or chain[-1].__cause__) is not None and inner not in chain:
        chain.append(inner)
    for link in reversed(chain):
        if isinstance(link, RaysepError):
            return " ".join(str(link).split())
    # The last line of a traceback names the error; Ray Data adds links and lines of advice behind it.
    lines = [line.strip() for link in chain for line in str(link).splitlines() if line.strip()]
    named = [line for line in lines if ERROR_LINE.match(line)] or lines
    return OUR_ERROR.sub("", named[-1]) if named else type(error).__name__


def missing_on_nodes(paths: Sequence[str]) -> dict[str, list[str]]:
    """Map of node address to the local paths that are missing on it; without the nodes that have all of them."""
    import ray

    @ray.remote(num_cpus=0)
    def missing() -> list[str]:
        return [path for path in paths if not Path(path).exists()]

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 or not paths:
        return {}
    answers = zip(nodes, ray.get(_asked_on(nodes, missing)), strict=True)
    return {node["NodeManagerAddress"]: found for node, found in answers if found}


def _asked_on(nodes: Sequence[dict[str, Any]], task: Any) -> list[Any]:
    """A remote function begun on each node, and on no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    return [task.options(scheduling_strategy=place).remote() for place in places]


def gpu_memory() -> int | None:
    """Bytes of the smallest GPU that answers; None where none does."""
    import ray
    from ray.exceptions import RayError

    @ray.remote(num_cpus=0, num_gpus=0.01)
    def measured() -> int | None:
        import torch

        return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    asked = _asked_on(nodes, measured)
    # A GPU that another run holds is not waited for.
    ready, busy = ray.wait(asked, num_returns=len(asked), timeout=GPU_ANSWER_S) if asked else ([], [])
    for task in busy:
        ray.cancel(task)
    try:
        known = [found for found in ray.get(ready) if found is not None]
    except RayError:
        return None
    return min(known) if known else None


def address() -> str:
    """Where the Ray that is connected to can be joined by other processes, as RAY_ADDRESS takes it."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _resources(may_add: Sequence[Shape]) -> Resources:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shapes = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive)
    # What may be added says what may be there in all: nodes that are up already count once.
    left = Counter(may_add or launcher_shapes()) - Counter(shapes)
    # A node that was told of no memory says nothing of it.
    memory = tuple(int(node["memory"]) if node.get("memory") else None for node in alive)
    return Resources(shapes, tuple(left.elements()), tuple(_kind(node) for node in alive), memory)


def _kind(resources: dict[str, float]) -> str:
    """A machine in words, as in `16 CPUs, 1 H100`."""
    named = [name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")]
    gpus = resources.get("GPU", 0)
    return f"{resources.get('CPU', 0):g} CPUs" + (f", {gpus:g} {'/'.join(named) or 'GPU'}" if gpus else "")
