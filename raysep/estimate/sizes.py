"""Work, bytes and memory of a run, computed from its configuration, its split and its models.

Existing results are ignored: the sizes are those of a run from its beginning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from raysep.config import RunConfig
from raysep.data import splits
from raysep.distributed import placement
from raysep.distributed.cluster_shape import Resources
from raysep.distributed.limits import Memory
from raysep.distributed.placement import IMPORTED_BYTES
from raysep.errors import UsageError
from raysep.finetune.trials import Trial
from raysep.stages.embed import CHECKPOINTS_AT_ONCE
from raysep.stages.worklist import role_of, splits_of, steps_of

# Training keeps the weights, their gradients and the two moments of AdamW in memory.
TRAINING_COPIES = 4


@dataclass(frozen=True)
class ModelSize:
    """Size of a model.

    Attributes:
        dims: dimension D of each layer.
        weight_bytes: size of the stored weights.
    """

    dims: Sequence[int]
    weight_bytes: int


@dataclass(frozen=True)
class Stage:
    """Size of one stage.

    Attributes:
        work: number of optimizer steps, single-image forward passes, or layers, by model id.
        unit: unit of the work.
        stored_bytes: bytes written.
        process_bytes: memory of each process, without the activations of a forward pass.
        processes: number of concurrent processes.
    """

    name: str
    work: Mapping[str, int]
    unit: str
    stored_bytes: int
    process_bytes: int
    processes: int


@dataclass(frozen=True)
class Evaluated:
    """Number of evaluated checkpoints, images and shard sets of one model.

    Attributes:
        checkpoints: number of checkpoints.
        images: number of images of all splits and rotations, counted once per checkpoint.
        sets: number of shard sets.
        largest: number of images of the largest split.
    """

    checkpoints: int
    images: int
    sets: int
    largest: int

    @property
    def at_once(self) -> int:
        """Number of checkpoints evaluated together on each decoded image."""
        return min(CHECKPOINTS_AT_ONCE, self.checkpoints)


def evaluated(config: RunConfig, split: pa.Table, trials: Sequence[Trial]) -> dict[str, Evaluated]:
    """Count what is evaluated, by model id; assumes that one setting of hyperparameters is chosen, with all seeds."""
    names = splits_of(config, split)
    chosen: dict[str, set[tuple[int, int]]] = {}
    steps = {trial.model.id: len(steps_of(config, trial)) for trial in trials}
    for trial in trials:
        chosen.setdefault(trial.model.id, set()).add((trial.seed, trial.rotation))
    by_model = {}
    for model_id, draws in chosen.items():
        counts = [
            splits.select(split, role_of(name), rotation).num_rows * steps[model_id]
            for _, rotation in draws
            for name in names
        ]
        by_model[model_id] = Evaluated(
            len(draws) * steps[model_id], sum(counts), len(counts) * steps[model_id], max(counts) // steps[model_id]
        )
    return by_model


def embed_pool(
    config: RunConfig, by_model: Mapping[str, Evaluated], cluster: Resources, process_bytes: int = IMPORTED_BYTES
) -> placement.Pool:
    """The pool of actors that embed, with `process_bytes` of memory each."""
    blocks = sum(-(-model.images // model.at_once // config.embed.shard_rows) for model in by_model.values())
    return placement.embed_plan(config.compute, cluster, blocks, process_bytes).embed


def stages(
    config: RunConfig, split: pa.Table, trials: Sequence[Trial], models: Mapping[str, ModelSize], cluster: Resources
) -> list[Stage]:
    """The size of each stage.

    Args:
        models: sizes by model id, including baselines.
    """
    by_model = evaluated(config, split, trials)
    bytes_each = 2 if config.embed.dtype == "float16" else 4
    trained = {key: sum(t.model.id == key and bool(t.hyperparameters) for t in trials) for key in models}
    steps = config.finetune.steps if config.finetune else 0
    heaviest = max(size.weight_bytes for size in models.values())
    training = Stage(
        "finetune",
        {key: count * steps for key, count in trained.items() if count},
        "optimizer steps",
        sum(models[trial.model.id].weight_bytes * len(steps_of(config, trial)) for trial in trials),
        IMPORTED_BYTES + TRAINING_COPIES * heaviest,
        min(len(trials), _slots(placement.trial_pool(config.compute, cluster, len(trials)), cluster)),
    )
    # Memory of a block: its embeddings, and the Parquet file made of them.
    embed_bytes = IMPORTED_BYTES + max(
        model.at_once * (models[key].weight_bytes + 2 * 4 * config.embed.shard_rows * sum(models[key].dims))
        for key, model in by_model.items()
    )
    checkpoint_bytes = IMPORTED_BYTES + max(model.at_once * models[key].weight_bytes for key, model in by_model.items())
    pool = embed_pool(config, by_model, cluster, checkpoint_bytes)
    embedding = Stage(
        "embed",
        {key: model.images for key, model in by_model.items()},
        "forward passes",
        sum(model.images * sum(models[key].dims) * bytes_each for key, model in by_model.items()),
        embed_bytes,
        pool.processes,
    )
    largest = max(4 * model.largest * max(models[key].dims) for key, model in by_model.items())
    scoring = Stage(
        "score",
        {key: model.sets * len(models[key].dims) for key, model in by_model.items()},
        "layers",
        0,
        placement.score_bytes(config.score, largest),
        placement.score_pool(config.compute, cluster, config.score, largest).processes,
    )
    return [training, embedding, scoring]


def require_room(
    estimates: Sequence[Stage], free_bytes: int | None, memory_bytes: int | None, memory: Memory | None = None
) -> None:
    """Raise UsageError if the run doesn't fit on the disk or in memory.

    Args:
        free_bytes: free space on the disk of the run directory; None if unknown.
        memory_bytes: memory of the machine that all processes run on; None on several machines.
        memory: the machine's memory and its limit, for the error message.
    """
    problems = []
    stored = sum(stage.stored_bytes for stage in estimates)
    if free_bytes is not None and stored > free_bytes:
        problems.append(
            f"the run writes {in_units(stored)}, but its disk has {in_units(free_bytes)} left: use another --run-dir, "
            "fewer steps in finetune.evaluate_at, fewer models[].layers, or embed.dtype=float16"
        )
    limit = f" (limit of its control group) of {in_units(memory.machine_bytes)}" if memory and memory.limited else ""
    problems += [
        f"{stage.name}: {stage.processes} process(es) need {in_units(stage.process_bytes)} each, but this machine has "
        f"{in_units(memory_bytes)} of memory{limit}: set compute.{COUNTS[stage.name]}, or use a larger machine"
        for stage in estimates
        if memory_bytes is not None and stage.processes * stage.process_bytes > memory_bytes
    ]
    if problems:
        raise UsageError("\n".join(["the run can't fit; nothing was started:", *(f"  - {line}" for line in problems)]))


# The key of `compute` that sets the number of concurrent processes of a stage.
COUNTS = {"finetune": "cpus_per_trial", "embed": "embed_actors", "score": "score_actors"}


def in_units(count: float) -> str:
    """A number of bytes as text.

    >>> in_units(1536), in_units(3 * 2**30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _slots(pool: placement.Pool, cluster: Resources) -> int:
    return max(1, min(pool.processes, cluster.slots(pool.cpus, pool.gpus)))
