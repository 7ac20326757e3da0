"""Start or join Ray, and say what it has. Nothing else in the package starts or stops Ray."""

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raysep.errors import RaysepError, StageError, UsageError

ERROR_LINE = re.compile(r"(?!ray\.)[\w.]*(Error|Exception)\b[^:]*: ")


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of the cluster, in total and on each node that is alive."""

    cpus: float
    gpus: float
    nodes: tuple[tuple[float, float], ...]

    def fits(self, cpus: float, gpus: float) -> bool:
        """Whether one node has as much as one process asks for."""
        return self.places(cpus, gpus) > 0

    def places(self, cpus: float, gpus: float) -> int:
        """How many processes of this size the nodes can run at once."""

        def on(node: tuple[float, float]) -> int:
            shares = [has / asked for has, asked in zip(node, (cpus, gpus), strict=True) if asked]
            return math.floor(min(shares) + 1e-9)

        return sum(on(node) for node in self.nodes)

    def require(self, key: str, cpus: float, gpus: float, count: int = 1) -> None:
        """Raise UsageError if `count` processes of this size can never run at once."""
        if self.places(cpus, gpus) >= count:
            return
        has = ", ".join(f"{node_cpus:g} CPUs and {node_gpus:g} GPUs" for node_cpus, node_gpus in self.nodes)
        raise UsageError(
            f"{key}: {count} process{'es' if count > 1 else ''} of {cpus:g} CPUs and {gpus:g} GPUs can't run on this "
            f"cluster, whose nodes have {has}. Ask for less, or for a larger cluster; nothing was started."
        )


@contextmanager
def connection(verbose: bool = False) -> Iterator[Resources]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, else start Ray on this machine.

    A Ray that was started here is stopped here; one that was joined is left running.

    Raises:
        RaysepError: the cluster named by RAY_ADDRESS can't be joined.
    """
    # Read by Ray when it is imported; a user's own setting wins.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    if not verbose:
        # Tune's new output prints a frame even where it is told to print nothing; its old one doesn't.
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    import ray

    if ray.is_initialized():
        yield _resources()
        return
    quiet: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError as error:
            address = os.environ.get("RAY_ADDRESS")
            if address:
                raise RaysepError(f"RAY_ADDRESS is {address}, and no Ray cluster answers there: {error}") from None
            ray.init(address="local", include_dashboard=False, **quiet)
    try:
        yield _resources()
    finally:
        ray.shutdown()


@contextmanager
def errors_of(stage: str) -> Iterator[None]:
    """Turn what Ray raises for a worker's error into a StageError that says what went wrong there."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise StageError(f"{stage}: {cause(error)}") from error


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
    return named[-1] if named else type(error).__name__


def _resources() -> Resources:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive)
    return Resources(sum(cpus for cpus, _ in nodes), sum(gpus for _, gpus in nodes), nodes)
