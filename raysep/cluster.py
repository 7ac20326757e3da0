"""Start or join Ray, and say what it has. Nothing else in the package starts or stops Ray."""

import logging
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raysep.errors import RaysepError, StageError, UsageError

ERROR_LINE = re.compile(r"(?!ray\.)[\w.]*(Error|Exception)\b[^:]*: ")


Shape = tuple[float, float]
# Written by Ray's cluster launcher on the head; what the autoscaler may add stands in it.
BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of each node that is alive, and of each that the autoscaler could add.

    Attributes:
        nodes, addable: CPUs and GPUs.
        kinds: what the live nodes are, in words, for the records.
    """

    nodes: tuple[Shape, ...]
    addable: tuple[Shape, ...] = ()
    kinds: tuple[str, ...] = field(default=(), compare=False)

    @property
    def reachable(self) -> tuple[Shape, ...]:
        """The nodes that are there and those that could be."""
        return self.nodes + self.addable

    @property
    def cpus(self) -> float:
        """Of all reachable nodes together."""
        return sum(cpus for cpus, _ in self.reachable)

    @property
    def gpus(self) -> float:
        """Of all reachable nodes together."""
        return sum(gpus for _, gpus in self.reachable)

    @property
    def at_once(self) -> int:
        """How many whole runs the reachable nodes can take: one for each GPU, or for each four CPUs."""
        return max(1, int(self.gpus) or int(self.cpus) // 4)

    def share(self, position: int, of: int) -> "Resources":
        """One of several parts for runs beside each other: whole nodes where there are enough, else parts of each.

        Parts never overlap, so that no run waits for what another one holds while it waits itself.
        """
        if of <= 1:
            return self
        reachable = self.reachable
        if len(reachable) >= of:
            return Resources(reachable[position::of], kinds=self.kinds)
        return Resources(
            tuple((max(1.0, cpus // of), gpus // of + (position < gpus % of)) for cpus, gpus in reachable),
            kinds=self.kinds,
        )

    def fits(self, cpus: float, gpus: float) -> bool:
        """Whether one node has as much as one process asks for."""
        return self.places(cpus, gpus) > 0

    def places(self, cpus: float, gpus: float) -> int:
        """How many processes of this size the reachable nodes can run at once."""

        def on(node: Shape) -> int:
            shares = [has / asked for has, asked in zip(node, (cpus, gpus), strict=True) if asked]
            return math.floor(min(shares) + 1e-9)

        return sum(on(node) for node in self.reachable)

    def require(self, key: str, cpus: float, gpus: float, count: int = 1) -> None:
        """Raise UsageError if `count` processes of this size can never run at once."""
        if self.places(cpus, gpus) >= count:
            return
        add = f", and autoscaling could add {in_words(self.addable)}" if self.addable else ""
        raise UsageError(
            f"{key}: {count} process{'es' if count > 1 else ''} of {cpus:g} CPUs and {gpus:g} GPUs can't run on this "
            f"cluster, whose nodes have {in_words(self.nodes)}{add}. Ask for less, or for a larger cluster (nodes that "
            "the autoscaler could add and Ray doesn't know of: compute.may_add); nothing was started."
        )

    def describe(self) -> str:
        """What the cluster is, on one line."""
        live = f"{in_words(self.nodes)} on {len(self.nodes)} node(s)"
        return live + (f"; autoscaling could add {in_words(self.addable)}" if self.addable else "")


def in_words(shapes: Sequence[Shape]) -> str:
    """Shapes of nodes, with how often each comes.

    >>> in_words([(2.0, 0.0), (8.0, 1.0), (8.0, 1.0)])
    '2 CPUs and 0 GPUs, 2 x 8 CPUs and 1 GPUs'
    """
    return ", ".join(
        (f"{count} x " if count > 1 else "") + f"{cpus:g} CPUs and {gpus:g} GPUs"
        for (cpus, gpus), count in Counter(shapes).items()
    )


@contextmanager
def connection(verbose: bool = False, may_add: Sequence[Shape] = ()) -> Iterator[Resources]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, else start Ray on this machine.

    A Ray that was started here is stopped here; one that was joined is left running.

    Args:
        verbose: let Ray's own lines through.
        may_add: nodes that the autoscaler could add, where Ray itself doesn't know of them.

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
        yield _resources(may_add)
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
        yield _resources(may_add)
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


def unseen_by_nodes(paths: Sequence[str]) -> dict[str, list[str]]:
    """Which of these local paths which nodes don't see: a run on several nodes needs storage that all of them reach.

    Returns:
        Node addresses and the paths missing there; empty where every node sees all of them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0)
    def missing() -> list[str]:
        return [path for path in paths if not Path(path).exists()]

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 or not paths:
        return {}
    asked = [
        missing.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    answers = zip(nodes, ray.get(asked), strict=True)
    return {node["NodeManagerAddress"]: found for node, found in answers if found}


def address() -> str:
    """Where the Ray that is connected to can be joined by other processes, as RAY_ADDRESS takes it."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _resources(may_add: Sequence[Shape]) -> Resources:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shapes = tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive)
    return Resources(shapes, tuple(may_add) or _autoscaled(), tuple(_kind(node) for node in alive))


def _kind(resources: dict[str, float]) -> str:
    """A machine in words, as in `16 CPUs, 1 H100`."""
    named = [name.removeprefix("accelerator_type:") for name in resources if name.startswith("accelerator_type:")]
    gpus = resources.get("GPU", 0)
    return f"{resources.get('CPU', 0):g} CPUs" + (f", {gpus:g} {'/'.join(named) or 'GPU'}" if gpus else "")


def _autoscaled() -> tuple[Shape, ...]:
    """The nodes that the autoscaler could add, as far as the cluster launcher wrote them down on this machine."""
    try:
        config = yaml.safe_load(BOOTSTRAP_CONFIG.expanduser().read_text())
        kinds = config["available_node_types"]
        limit = int(config.get("max_workers", 0))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return ()
    shapes = [
        (float(kind.get("resources", {}).get("CPU", 0)), float(kind.get("resources", {}).get("GPU", 0)))
        for name, kind in kinds.items()
        if name != config.get("head_node_type")
        for _ in range(min(int(kind.get("max_workers", 0)), limit))
    ]
    return tuple(shapes)
