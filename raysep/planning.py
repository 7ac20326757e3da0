"""How a stage's work is divided over the cluster. Pure arithmetic on what the cluster has.

Every figure can be set in the section `compute`; what is set and can never run is refused before any work.
"""

from dataclasses import dataclass

from raysep.cluster import Resources
from raysep.config import ComputeConfig, ScoreConfig

# Fewer blocks than this don't pay for the seconds that an actor takes to start.
MIN_BLOCKS_PER_ACTOR = 4


@dataclass(frozen=True)
class Pool:
    """How many processes run at once, and what each asks Ray for.

    Attributes:
        processes: at most this many.
        cpus, gpus: of each.
    """

    processes: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Threads of each process. Ray sets OMP_NUM_THREADS, which torch would follow otherwise."""
        return max(1, int(self.cpus))


def check(compute: ComputeConfig, cluster: Resources) -> None:
    """Raise UsageError for what is asked for and can never run, instead of waiting for it for ever."""
    cluster.require("compute.cpus_per_trial", compute.cpus_per_trial or 1, compute.gpus_per_trial or 0)
    cluster.require(
        "compute.cpus_per_embed_actor",
        compute.cpus_per_embed_actor or 1,
        compute.gpus_per_embed_actor or 0,
        compute.embed_actors or 1,
    )
    cluster.require("compute.score_actors", 1, compute.gpus_per_score_actor or 0, compute.score_actors or 1)


def trial_pool(compute: ComputeConfig, cluster: Resources, trials: int) -> Pool:
    """A GPU for each trial where there are any; CPUs divided among the trials that can run at once."""
    gpus = compute.gpus_per_trial if compute.gpus_per_trial is not None else float(cluster.gpus > 0)
    if compute.cpus_per_trial is not None:
        return Pool(trials, compute.cpus_per_trial, gpus)
    node_cpus, node_gpus = max(cluster.nodes, key=lambda node: (node[1], node[0]) if gpus else node)
    at_once = node_gpus / gpus if gpus else min(trials, node_cpus)
    return Pool(trials, float(max(1, int(node_cpus / max(1, at_once)))), gpus)


def embed_pool(compute: ComputeConfig, cluster: Resources, blocks: int) -> Pool:
    """An actor for each GPU; without one, an actor for each CPU, or wider actors where blocks are few.

    One thread per actor is the fastest use of CPUs, since decoding and the model then run on all of
    them, but an actor takes seconds to start. The actors may ask for every CPU: the pipeline has no
    other operator that could wait for one.
    """
    gpus = compute.gpus_per_embed_actor if compute.gpus_per_embed_actor is not None else float(cluster.gpus > 0)
    if gpus:
        # Half of a node's CPUs for each of its GPUs, by the node that has the fewest.
        per_gpu = min(node_cpus / node_gpus for node_cpus, node_gpus in cluster.nodes if node_gpus >= gpus)
        cpus = float(compute.cpus_per_embed_actor or max(1, int(per_gpu * gpus / 2)))
        return Pool(compute.embed_actors or max(1, cluster.places(cpus, gpus)), cpus, gpus)
    wanted = compute.embed_actors or max(1, min(int(cluster.cpus), blocks // MIN_BLOCKS_PER_ACTOR))
    smallest = min(cpus for cpus, _ in cluster.nodes if cpus >= 1)
    cpus = float(compute.cpus_per_embed_actor or max(1, int(min(smallest, cluster.cpus / wanted))))
    return Pool(min(wanted, cluster.places(cpus, 0)), cpus, 0.0)


def score_pool(compute: ComputeConfig, cluster: Resources, config: ScoreConfig) -> Pool:
    """An actor for each GPU that cuML may use, else for each CPU."""
    default = float(config.backend != "sklearn" and cluster.gpus > 0)
    gpus = compute.gpus_per_score_actor if compute.gpus_per_score_actor is not None else default
    return Pool(compute.score_actors or max(1, cluster.places(1, gpus)), 1.0, gpus)
