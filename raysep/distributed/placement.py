"""How a stage's work is divided over the cluster. Pure arithmetic on what the cluster has.

Every figure can be set in the section `compute`; what is set and can never run is refused before any work.
"""

from dataclasses import dataclass

from raysep.config import ComputeConfig, ScoreConfig
from raysep.distributed.cluster_shape import Resources
from raysep.scoring.backends import may_use_gpu

# What a process on a GPU takes without any data, how often a layer may be in its memory at once with what is made from
# it, and how many processes take turns on one GPU at most. Estimates: no GPU was there to measure them on.
GPU_CONTEXT_BYTES, GPU_COPIES, MAX_ACTORS_PER_GPU = 2**30, 4, 4
# What a process has in memory once Ray Data, torch, timm and scikit-learn are imported (measured on Linux: 915 MiB).
IMPORTED_BYTES = 900 * 2**20
# How often a layer is in memory while it is scored, with what is made from it (2.1 to 2.9 were measured for
# 50,000 x 768 in 100 classes), and how often beside that for scikit-learn, which protocol `paper` asks.
LAYER_COPIES, COPIES_FOR_PAPER = 3, 2
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


@dataclass(frozen=True)
class EmbedPlan:
    """How images are embedded: by which actors, and whether others decode for them."""

    embed: Pool
    decode: Pool | None = None


def check(compute: ComputeConfig, cluster: Resources) -> None:
    """Raise UsageError for what is asked for and can never run, instead of waiting for it for ever."""
    cluster.require("compute.cpus_per_trial", compute.cpus_per_trial or 1, compute.gpus_per_trial or 0)
    cluster.require(
        "compute.cpus_per_embed_actor",
        compute.cpus_per_embed_actor or 1,
        compute.gpus_per_embed_actor or 0,
        compute.embed_actors or 1,
    )
    if compute.decode_actors:
        actors = compute.embed_actors or 1
        taken = actors * (compute.cpus_per_embed_actor or 1)
        cluster.require("compute.decode_actors, beside the embed actors", 1, 0, compute.decode_actors + taken)
    cluster.require("compute.score_actors", 1, compute.gpus_per_score_actor or 0, compute.score_actors or 1)


def trial_pool(compute: ComputeConfig, cluster: Resources, trials: int, process_bytes: int = IMPORTED_BYTES) -> Pool:
    """A GPU for each trial where there are any; CPUs divided among the trials that can run at once.

    Args:
        process_bytes: memory of each. Where it holds fewer trials than there are CPUs, each takes more of these.
    """
    gpus = compute.gpus_per_trial if compute.gpus_per_trial is not None else float(cluster.gpus > 0)
    if compute.cpus_per_trial is not None:
        return Pool(trials, compute.cpus_per_trial, gpus)
    node_cpus, node_gpus = max(cluster.reachable, key=lambda node: (node[1], node[0]) if gpus else node)
    node = Resources(((node_cpus, node_gpus),), memory=(cluster.memory_of((node_cpus, node_gpus)),))
    at_once = node_gpus / gpus if gpus else min(trials, max(1, node.places(1, 0, process_bytes)))
    return Pool(trials, float(max(1, int(node_cpus / max(1, at_once)))), gpus)


def prepare_pool(cluster: Resources, models: int) -> Pool:
    """A CPU for each model that is written as it is."""
    return Pool(max(1, min(models, cluster.places(1, 0, IMPORTED_BYTES))), 1.0, 0.0)


def embed_plan(
    compute: ComputeConfig, cluster: Resources, blocks: int, process_bytes: int = IMPORTED_BYTES
) -> EmbedPlan:
    """An actor for each GPU, for which the CPUs decode; without one, an actor for each CPU, or wider ones for little.

    One thread per actor is the fastest use of CPUs, since decoding and the model then run on all of
    them, but an actor takes seconds to start. The actors may ask for every CPU where they decode themselves: the
    pipeline then has no other operator that could wait for one. Decoders start first, and may take any CPU there is,
    so that a GPU's actor asks for none: it could wait for ever for one that a decoder has.

    Args:
        process_bytes: memory of each process; unless their number is set, there are as many as it allows.
    """
    gpus = compute.gpus_per_embed_actor if compute.gpus_per_embed_actor is not None else float(cluster.gpus > 0)
    if not gpus:
        return _embed_on_cpus(compute, cluster, blocks, process_bytes)
    cpus = float(compute.cpus_per_embed_actor or 0)
    actors = compute.embed_actors or max(1, cluster.places(cpus, gpus, process_bytes))
    left = sum(int(node_cpus) for node_cpus, _ in cluster.reachable) - int(actors * cpus)
    fitting = cluster.places(1, 0, process_bytes) - (actors if any(cluster.memory) else 0)
    decoders = min(left, blocks, max(1, fitting)) if compute.decode_actors is None else compute.decode_actors
    if decoders < 1:
        # They decode themselves then, each on a CPU of its own.
        cpus = max(1.0, cpus)
        return EmbedPlan(Pool(compute.embed_actors or max(1, cluster.places(cpus, gpus, process_bytes)), cpus, gpus))
    return EmbedPlan(Pool(actors, cpus, gpus), Pool(decoders, 1.0, 0.0))


def _embed_on_cpus(compute: ComputeConfig, cluster: Resources, blocks: int, process_bytes: int) -> EmbedPlan:
    decoders = compute.decode_actors or 0
    decode = Pool(decoders, 1.0, 0.0) if decoders else None
    total = max(1, int(cluster.cpus) - decoders)
    fitting = cluster.places(1, 0, process_bytes) - decoders
    wanted = compute.embed_actors or max(1, min(total, fitting, blocks // MIN_BLOCKS_PER_ACTOR))
    smallest = min(cpus for cpus, _ in cluster.reachable if cpus >= 1)
    # Beside decoders, which take any CPU they find, only an actor of one CPU is sure to find its place.
    wide = 1 if decode else max(1, int(min(smallest, total / wanted)))
    cpus = float(compute.cpus_per_embed_actor or wide)
    return EmbedPlan(Pool(max(1, min(wanted, cluster.places(cpus, 0) - decoders)), cpus, 0.0), decode)


def score_pool(
    compute: ComputeConfig, cluster: Resources, config: ScoreConfig, layer_bytes: int = 0, gpu_bytes: int | None = None
) -> Pool:
    """As many actors on each GPU as their memory allows, where a backend may use it; else one for each CPU.

    No more than the memory of their nodes allows, unless their number is set.

    Args:
        layer_bytes: of the largest layer.
        gpu_bytes: memory of a GPU; None: not known, and each actor has one to itself.
    """
    gpus = compute.gpus_per_score_actor
    if gpus is None:
        gpus = 0.0
        if cluster.gpus > 0 and may_use_gpu(config.backend):
            needs = GPU_CONTEXT_BYTES + GPU_COPIES * layer_bytes
            # A whole number of actors on each GPU.
            gpus = 1.0 if gpu_bytes is None else 1 / max(1, min(MAX_ACTORS_PER_GPU, gpu_bytes // needs))
    places = cluster.places(1, gpus, score_bytes(config, layer_bytes))
    return Pool(compute.score_actors or max(1, places), 1.0, gpus)


def shortage(stage: str, pool: Pool, cluster: Resources, process_bytes: int) -> str | None:
    """A sentence where the memory of the nodes is not enough for the processes of a pool; None where it is.

    Args:
        process_bytes: memory of each, as far as it is known beforehand.
    """
    fitting = cluster.places(pool.cpus or 0.01, pool.gpus, process_bytes)
    if fitting >= pool.processes or cluster.places(pool.cpus or 0.01, pool.gpus) < pool.processes:
        return None
    has = sum(held or 0 for held in cluster.memory)
    return (
        f"{stage}: {pool.processes} process(es) take about {process_bytes / 2**30:.1f} GiB each, and the nodes have "
        f"{has / 2**30:.1f} GiB for processes: they may be killed for lack of memory; set compute.{stage}_actors to "
        f"{max(1, fitting)}, or use larger machines"
    )


def score_bytes(config: ScoreConfig, layer_bytes: int) -> int:
    """Memory of a process that scores layers of so many bytes."""
    copies = LAYER_COPIES + (COPIES_FOR_PAPER if "paper" in config.protocols else 0)
    return IMPORTED_BYTES + copies * layer_bytes
