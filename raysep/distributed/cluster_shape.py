"""What a cluster has and could have, as plain numbers. Knows no Ray."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from raysep.errors import UsageError

# CPUs and GPUs of a node.
Shape = tuple[float, float]
# Written by Ray's cluster launcher on the head; what the autoscaler may add stands in it.
BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of each node that is alive, and of each that the autoscaler could add to them.

    Attributes:
        nodes, addable: CPUs and GPUs.
        kinds: what the live nodes are, in words, for the records.
        memory: bytes for processes on each of `nodes`, where it is known; empty: of none.
    """

    nodes: tuple[Shape, ...]
    addable: tuple[Shape, ...] = ()
    kinds: tuple[str, ...] = field(default=(), compare=False)
    memory: tuple[int | None, ...] = field(default=(), compare=False)

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

    def parts(self, wanted: int | None) -> int:
        """How many runs may share the nodes: as many as wanted, else one for each GPU or for each four CPUs.

        No run goes without a CPU, nor without a GPU where others have one: what it found would be another backend's.
        """
        most = int(self.gpus) or sum(int(cpus) for cpus, _ in self.reachable)
        return max(1, min(most, wanted or int(self.gpus) or int(self.cpus) // 4))

    def share(self, position: int, of: int) -> "Resources":
        """One of `parts` for runs beside each other: whole nodes where there are enough, else parts of each.

        Parts never overlap, so that no run waits for what another one holds while it waits itself.
        """
        if of <= 1:
            return self
        known = zip(self.reachable, self._memory, strict=True)
        useful = [(node, held) for node, held in known if (node[1] >= 1 if self.gpus else node[0] >= 1)]
        if len(useful) >= of:
            nodes, memory = zip(*useful[position::of], strict=True)
            return Resources(nodes, kinds=self.kinds, memory=memory)
        found, memories, first = list[Shape](), list[int | None](), 0
        for (cpus, gpus), held in useful:
            # Nodes are dealt out one after the other, so that what is left over of each goes to different parts.
            turn = (position - first) % of
            own = (cpus // of + (turn < cpus % of), gpus // of + (turn < gpus % of))
            first += int(gpus if self.gpus else cpus) % of
            if own[0] >= 1 and (own[1] >= 1 or not self.gpus):
                found.append(own)
                memories.append(None if held is None else held // of)
        return Resources(tuple(found), kinds=self.kinds, memory=tuple(memories))

    def fits(self, cpus: float, gpus: float) -> bool:
        """Whether one node has as much as one process asks for."""
        return self.places(cpus, gpus) > 0

    def places(self, cpus: float, gpus: float, memory: int = 0) -> int:
        """How many processes of this size the reachable nodes can run at once.

        Args:
            cpus, gpus: of each process.
            memory: bytes of each process; counts on nodes whose memory is known.
        """

        def on(node: Shape, held: int | None) -> int:
            pairs = [(node[0], cpus), (node[1], gpus), *([(held, memory)] if held is not None else [])]
            return math.floor(min(has / asked for has, asked in pairs if asked) + 1e-9)

        return sum(on(node, held) for node, held in zip(self.reachable, self._memory, strict=True))

    def memory_of(self, shape: Shape) -> int | None:
        """Bytes for processes on the smallest node of a shape, where they are known."""
        known = [held for node, held in zip(self.reachable, self._memory, strict=True) if node == shape and held]
        return min(known, default=None)

    @property
    def _memory(self) -> tuple[int | None, ...]:
        """Of each reachable node; of what could be added nothing is known."""
        return (*self.memory, *[None] * (len(self.reachable) - len(self.memory)))

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


def launcher_shapes() -> tuple[Shape, ...]:
    """The workers that the cluster launcher may have up at once, as far as it wrote that down on this machine."""
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
