"""Start or join Ray, and query its resources. No other module starts or stops Ray."""

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

# Timeout of the query for a GPU's memory.
GPU_ANSWER_S = 20
OUR_ERROR = re.compile(r"^raysep\.[\w.]+: ")
ERROR_LINE = re.compile(r"(?!ray\.)[\w.]*(Error|Exception)\b[^:]*: ")


@contextmanager
def connection(verbose: bool = False, may_add: Sequence[Shape] = ()) -> Iterator[Resources]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, else start Ray on this machine.

    Stops Ray at the end of the block if it was started here; leaves a joined cluster running.

    Args:
        verbose: print Ray's own log lines.
        may_add: nodes that the autoscaler could add but Ray doesn't report.

    Raises:
        UsageError: a run can't join the address in RAY_ADDRESS.
        RaysepError: Ray can't be started, or the cluster can't be joined.
    """
    prepare()
    if not verbose:
        # Tune's new output engine prints a frame even at verbosity 0; the old engine doesn't.
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
                joining.authenticate_new_ray()
                ray.init(address="local", include_dashboard=False, **limits.ray_arguments(), **quiet)
            else:
                ray.init(address=address, **quiet)
        except Exception as error:
            # `ray.init` raises errors of any type, such as for too little memory or a cluster that has just gone.
            what = "can't be started on this machine" if address is None else f"can't be joined at {address}"
            raise RaysepError(f"Ray {what}: {' '.join(str(error).split())}") from error
    # Ray has installed its own SIGTERM handler.
    signals.rearm()
    try:
        yield _resources(may_add)
    finally:
        ray.shutdown()


def prepare() -> None:
    """Set defaults of environment variables that Ray and Tune read; the user's values win."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def stage_errors(stage: str) -> Iterator[None]:
    """Turn Ray's error for a failed worker into a StageError with the worker's own error."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise StageError(f"{stage}: {cause(error)}") from error


def worker_loss_errors() -> tuple[type[Exception], ...]:
    """Ray's exceptions for a lost worker or node, as opposed to an error that the worker raised."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
        exceptions.NodeDiedError,
    )


def cause(error: BaseException | None) -> str:
    """The error of a worker on one line, extracted from Ray's exception, which holds the worker's traceback as text."""
    if error is None:
        return "it never started"
    chain: list[BaseException] = [error]
    while (inner := getattr(chain[-1], "cause", None) or chain[-1].__cause__) is not None and inner not in chain:
        chain.append(inner)
    for link in reversed(chain):
        if isinstance(link, RaysepError):
            return " ".join(str(link).split())
    # The last line of a traceback names the error; Ray Data appends links and advice.
    lines = [line.strip() for link in chain for line in str(link).splitlines() if line.strip()]
    named = [line for line in lines if ERROR_LINE.match(line)] or lines
    return OUR_ERROR.sub("", named[-1]) if named else type(error).__name__


def missing_on_nodes(paths: Sequence[str]) -> dict[str, list[str]]:
    """Local paths that a node lacks, by node address; nodes with all paths are omitted."""
    import ray

    @ray.remote(num_cpus=0)
    def missing() -> list[str]:
        return [path for path in paths if not Path(path).exists()]

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 or not paths:
        return {}
    answers = zip(nodes, ray.get(_run_on(nodes, missing)), strict=True)
    return {node["NodeManagerAddress"]: lacking for node, lacking in answers if lacking}


def _run_on(nodes: Sequence[dict[str, Any]], task: Any) -> list[Any]:
    """Start a remote function once on each node; returns the object references."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    return [task.options(scheduling_strategy=strategy).remote() for strategy in strategies]


def gpu_memory() -> int | None:
    """Memory in bytes of the smallest GPU among those that answer within `GPU_ANSWER_S`; None without an answer."""
    import ray
    from ray.exceptions import RayError

    @ray.remote(num_cpus=0, num_gpus=0.01)
    def measure() -> int | None:
        import torch

        return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    tasks = _run_on(nodes, measure)
    # Don't wait for GPUs that another run holds.
    ready, busy = ray.wait(tasks, num_returns=len(tasks), timeout=GPU_ANSWER_S) if tasks else ([], [])
    for task in busy:
        ray.cancel(task)
    try:
        known = [memory for memory in ray.get(ready) if memory is not None]
    except RayError:
        return None
    return min(known) if known else None


def address() -> str:
    """Address of the connected cluster, in the format of RAY_ADDRESS."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _resources(may_add: Sequence[Shape]) -> Resources:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shapes = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive)
    # `may_add` and the launcher list nodes that may exist in total, so the live ones are subtracted.
    left = Counter(may_add or launcher_shapes()) - Counter(shapes)
    # Ray may report no memory for a node.
    memory = tuple(int(node["memory"]) if node.get("memory") else None for node in alive)
    return Resources(shapes, tuple(left.elements()), tuple(_kind(node) for node in alive), memory)


def _kind(resources: dict[str, float]) -> str:
    """Description of a node: `16 CPUs, 1 H100`."""
    named = [name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")]
    gpus = resources.get("GPU", 0)
    return f"{resources.get('CPU', 0):g} CPUs" + (f", {gpus:g} {'/'.join(named) or 'GPU'}" if gpus else "")
