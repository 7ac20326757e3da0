"""CPUs, GPUs and memory of a cluster, and of nodes that its autoscaler could add. Doesn't import Ray."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from raysep.errors import UsageError

# CPUs and GPUs of one node.
Shape = tuple[float, float]
# Written by Ray's cluster launcher on the head; lists the nodes that the autoscaler may add.
BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")


@dataclass(frozen=True)
class Resources:
    """CPUs, GPUs and memory of the live nodes, and CPUs and GPUs of nodes that the autoscaler could add.

    Attributes:
        nodes: CPUs and GPUs of each live node.
        addable: CPUs and GPUs of each node that the autoscaler could add.
        kinds: descriptions of the live nodes, for the run's manifest: `16 CPUs, 1 H100`.
        memory: bytes available to processes on each of `nodes`; None where unknown, empty if all are unknown.
    """

    nodes: tuple[Shape, ...]
    addable: tuple[Shape, ...] = ()
    kinds: tuple[str, ...] = field(default=(), compare=False)
    memory: tuple[int | None, ...] = field(default=(), compare=False)

    @property
    def reachable(self) -> tuple[Shape, ...]:
        """Live nodes and addable nodes."""
        return self.nodes + self.addable

    @property
    def cpus(self) -> float:
        """CPUs of all reachable nodes."""
        return sum(cpus for cpus, _ in self.reachable)

    @property
    def gpus(self) -> float:
        """GPUs of all reachable nodes."""
        return sum(gpus for _, gpus in self.reachable)

    def parts(self, wanted: int | None) -> int:
        """Number of concurrent runs to divide the nodes among: `wanted`, else one per GPU or per 4 CPUs.

        Every run gets a CPU, and a GPU if the cluster has any: a run without a GPU would get results from another
        backend.
        """
        most = int(self.gpus) or sum(int(cpus) for cpus, _ in self.reachable)
        return max(1, min(most, wanted or int(self.gpus) or int(self.cpus) // 4))

    def share(self, position: int, of: int) -> "Resources":
        """The share of run number `position` among `of` concurrent ones: whole nodes if there are enough, else parts.

        Shares never overlap, so that concurrent runs can't deadlock.
        """
        if of <= 1:
            return self
        pairs = zip(self.reachable, self._memory, strict=True)
        useful = [(node, available) for node, available in pairs if (node[1] >= 1 if self.gpus else node[0] >= 1)]
        if len(useful) >= of:
            nodes, memory = zip(*useful[position::of], strict=True)
            return Resources(nodes, kinds=self.kinds, memory=memory)
        parts, memories, first = list[Shape](), list[int | None](), 0
        for (cpus, gpus), available in useful:
            # Rotate the run that gets the first remainder, so that remainders of the nodes go to different runs.
            turn = (position - first) % of
            part = (cpus // of + (turn < cpus % of), gpus // of + (turn < gpus % of))
            first += int(gpus if self.gpus else cpus) % of
            if part[0] >= 1 and (part[1] >= 1 or not self.gpus):
                parts.append(part)
                memories.append(None if available is None else available // of)
        return Resources(tuple(parts), kinds=self.kinds, memory=tuple(memories))

    def fits(self, cpus: float, gpus: float) -> bool:
        """Whether some node can run a process of this size."""
        return self.slots(cpus, gpus) > 0

    def slots(self, cpus: float, gpus: float, memory: int = 0) -> int:
        """Number of processes of this size that the reachable nodes can run at once.

        Args:
            cpus, gpus: CPUs and GPUs of each process.
            memory: bytes of each process; ignored on nodes of unknown memory.
        """

        def on(node: Shape, available: int | None) -> int:
            pairs = [(node[0], cpus), (node[1], gpus), *([(available, memory)] if available is not None else [])]
            return math.floor(min(has / needed for has, needed in pairs if needed) + 1e-9)

        return sum(on(node, available) for node, available in zip(self.reachable, self._memory, strict=True))

    def memory_of(self, shape: Shape) -> int | None:
        """Least memory for processes, in bytes, of any node of a shape; None if unknown."""
        known = [memory for node, memory in zip(self.reachable, self._memory, strict=True) if node == shape and memory]
        return min(known, default=None)

    @property
    def _memory(self) -> tuple[int | None, ...]:
        """Memory of each reachable node; unknown for addable nodes."""
        return (*self.memory, *[None] * (len(self.reachable) - len(self.memory)))

    def require(self, key: str, cpus: float, gpus: float, count: int = 1) -> None:
        """Raise UsageError, naming `key`, if `count` processes of this size can never run at once."""
        if self.slots(cpus, gpus) >= count:
            return
        add = f", and autoscaling could add {describe_shapes(self.addable)}" if self.addable else ""
        raise UsageError(
            f"{key}: {count} process{'es' if count > 1 else ''} of {cpus:g} CPUs and {gpus:g} GPUs can't run on this "
            f"cluster, whose nodes have {describe_shapes(self.nodes)}{add}. Request less, or use a larger cluster "
            "(list in compute.may_add the nodes that the autoscaler could add but Ray doesn't report); nothing was "
            "started."
        )

    def describe(self) -> str:
        """Live and addable nodes, on one line."""
        live = f"{describe_shapes(self.nodes)} on {len(self.nodes)} node(s)"
        return live + (f"; autoscaling could add {describe_shapes(self.addable)}" if self.addable else "")


def describe_shapes(shapes: Sequence[Shape]) -> str:
    """Shapes of nodes and their counts, as text.

    >>> describe_shapes([(2.0, 0.0), (8.0, 1.0), (8.0, 1.0)])
    '2 CPUs and 0 GPUs, 2 x 8 CPUs and 1 GPUs'
    """
    return ", ".join(
        (f"{count} x " if count > 1 else "") + f"{cpus:g} CPUs and {gpus:g} GPUs"
        for (cpus, gpus), count in Counter(shapes).items()
    )


def launcher_shapes() -> tuple[Shape, ...]:
    """Worker nodes that Ray's cluster launcher may start, from its file on this machine; empty without one."""
    try:
        config = yaml.safe_load(BOOTSTRAP_CONFIG.expanduser().read_text())
        kinds = config["available_node_types"]
        limit = int(config.get("max_workers", 0))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return ()
    return tuple(
        (float(kind.get("resources", {}).get("CPU", 0)), float(kind.get("resources", {}).get("GPU", 0)))
        for name, kind in kinds.items()
        if name != config.get("head_node_type")
        for _ in range(min(int(kind.get("max_workers", 0)), limit))
    )
