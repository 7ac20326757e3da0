"""Number of processes of each stage, and their CPUs and GPUs, from the resources of the cluster.

Values of the section `compute` override these; a value that can never be scheduled is refused before any work.
"""

from dataclasses import dataclass

from raysep.config import ComputeConfig, ScoreConfig
from raysep.distributed.cluster_shape import Resources
from raysep.scoring.backends import may_use_gpu

# Estimates, not measurements: GPU memory of a process without data, copies of a layer in GPU memory while it is scored,
# and the maximum of processes per GPU.
GPU_CONTEXT_BYTES, GPU_COPIES, MAX_ACTORS_PER_GPU = 2**30, 4, 4
# Memory of a process that has imported Ray Data, torch, timm and scikit-learn (measured on Linux: 915 MiB).
IMPORTED_BYTES = 900 * 2**20
# Copies of a layer in memory while it is scored (2.1 to 2.9 were measured for 50,000 x 768 in 100 classes), and further
# copies for scikit-learn, which protocol `paper` uses.
LAYER_COPIES, COPIES_FOR_PAPER = 3, 2
# Fewer blocks than this don't amortize an actor's start-up time of seconds.
MIN_BLOCKS_PER_ACTOR = 4


@dataclass(frozen=True)
class Pool:
    """Number of concurrent processes, and the resources of each.

    Attributes:
        processes: maximum number.
        cpus, gpus: requested from Ray by each process.
    """

    processes: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Threads of each process, set explicitly, since torch would follow the OMP_NUM_THREADS that Ray sets."""
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class EmbedPlan:
    """The pool of actors that embed, and the pool of actors that decode for them, if any."""

    embed: Pool
    decode: Pool | None = None


def check(compute: ComputeConfig, cluster: Resources) -> None:
    """Raise UsageError for requested resources that the cluster can never provide: Ray would wait forever."""
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
    """A GPU for each trial if the cluster has any, and the CPUs of a node divided among its concurrent trials.

    Args:
        process_bytes: memory of each trial. If memory limits the concurrent trials, each gets more CPUs.
    """
    gpus = compute.gpus_per_trial if compute.gpus_per_trial is not None else float(cluster.gpus > 0)
    if compute.cpus_per_trial is not None:
        return Pool(trials, compute.cpus_per_trial, gpus)
    node_cpus, node_gpus = max(cluster.reachable, key=lambda node: (node[1], node[0]) if gpus else node)
    node = Resources(((node_cpus, node_gpus),), memory=(cluster.memory_of((node_cpus, node_gpus)),))
    at_once = node_gpus / gpus if gpus else min(trials, max(1, node.slots(1, 0, process_bytes)))
    return Pool(trials, float(max(1, int(node_cpus / max(1, at_once)))), gpus)


def prepare_pool(cluster: Resources, models: int) -> Pool:
    """A process with one CPU for each model that is evaluated without training."""
    return Pool(max(1, min(models, cluster.slots(1, 0, IMPORTED_BYTES))), 1.0, 0.0)


def embed_plan(
    compute: ComputeConfig, cluster: Resources, blocks: int, process_bytes: int = IMPORTED_BYTES
) -> EmbedPlan:
    """An actor per GPU, with CPU actors that decode for it; without GPUs an actor per CPU, or fewer for little work.

    One thread per actor is the fastest use of CPUs, since decoding and the model then use all of them, but an actor
    takes seconds to start. Embedding actors that also decode may request all CPUs, since the pipeline has no other
    operator that could wait for one. Decoders start first and may take any CPU, so an actor with a GPU requests no
    CPU: it could wait forever for one that a decoder holds.

    Args:
        process_bytes: memory of each process, which limits their number unless that is configured.
    """
    gpus = compute.gpus_per_embed_actor if compute.gpus_per_embed_actor is not None else float(cluster.gpus > 0)
    if not gpus:
        return _embed_on_cpus(compute, cluster, blocks, process_bytes)
    cpus = float(compute.cpus_per_embed_actor or 0)
    actors = compute.embed_actors or max(1, cluster.slots(cpus, gpus, process_bytes))
    left = sum(int(node_cpus) for node_cpus, _ in cluster.reachable) - int(actors * cpus)
    fitting = cluster.slots(1, 0, process_bytes) - (actors if any(cluster.memory) else 0)
    decoders = min(left, blocks, max(1, fitting)) if compute.decode_actors is None else compute.decode_actors
    if decoders < 1:
        # No CPU is left for decoders: the actors decode, each on its own CPU.
        cpus = max(1.0, cpus)
        return EmbedPlan(Pool(compute.embed_actors or max(1, cluster.slots(cpus, gpus, process_bytes)), cpus, gpus))
    return EmbedPlan(Pool(actors, cpus, gpus), Pool(decoders, 1.0, 0.0))


def _embed_on_cpus(compute: ComputeConfig, cluster: Resources, blocks: int, process_bytes: int) -> EmbedPlan:
    decoders = compute.decode_actors or 0
    decode = Pool(decoders, 1.0, 0.0) if decoders else None
    total = max(1, int(cluster.cpus) - decoders)
    fitting = cluster.slots(1, 0, process_bytes) - decoders
    wanted = compute.embed_actors or max(1, min(total, fitting, blocks // MIN_BLOCKS_PER_ACTOR))
    smallest = min(cpus for cpus, _ in cluster.reachable if cpus >= 1)
    # Decoders may leave a single free CPU on each node, so only an actor with one CPU is sure to be scheduled.
    width = 1 if decode else max(1, int(min(smallest, total / wanted)))
    cpus = float(compute.cpus_per_embed_actor or width)
    return EmbedPlan(Pool(max(1, min(wanted, cluster.slots(cpus, 0) - decoders)), cpus, 0.0), decode)


def score_pool(
    compute: ComputeConfig, cluster: Resources, config: ScoreConfig, layer_bytes: int = 0, gpu_bytes: int | None = None
) -> Pool:
    """As many actors per GPU as its memory allows, if the backend may use GPUs; else one per CPU.

    The memory of the nodes limits their number, unless that is configured.

    Args:
        layer_bytes: size of the largest layer.
        gpu_bytes: memory of a GPU; None if unknown: one actor per GPU.
    """
    gpus = compute.gpus_per_score_actor
    if gpus is None:
        gpus = 0.0
        if cluster.gpus > 0 and may_use_gpu(config.backend):
            needs = GPU_CONTEXT_BYTES + GPU_COPIES * layer_bytes
            # A whole number of actors on each GPU.
            gpus = 1.0 if gpu_bytes is None else 1 / max(1, min(MAX_ACTORS_PER_GPU, gpu_bytes // needs))
    slots = cluster.slots(1, gpus, score_bytes(config, layer_bytes))
    return Pool(compute.score_actors or max(1, slots), 1.0, gpus)


def shortage(stage: str, pool: Pool, cluster: Resources, process_bytes: int) -> str | None:
    """A warning if the memory of the nodes is too small for the processes of a pool; else None.

    Args:
        process_bytes: memory of each process, as far as it is known in advance.
    """
    fitting = cluster.slots(pool.cpus or 0.01, pool.gpus, process_bytes)
    if fitting >= pool.processes or cluster.slots(pool.cpus or 0.01, pool.gpus) < pool.processes:
        return None
    available = sum(memory or 0 for memory in cluster.memory)
    return (
        f"{stage}: {pool.processes} process(es) need about {process_bytes / 2**30:.1f} GiB each, and the nodes have "
        f"{available / 2**30:.1f} GiB for processes: Ray may kill some of them; set compute.{stage}_actors to "
        f"{max(1, fitting)}, or use larger machines"
    )


def score_bytes(config: ScoreConfig, layer_bytes: int) -> int:
    """Memory of a process that scores layers of up to `layer_bytes`."""
    copies = LAYER_COPIES + (COPIES_FOR_PAPER if "paper" in config.protocols else 0)
    return IMPORTED_BYTES + copies * layer_bytes
