"""How much of what a run will take. Pure arithmetic on its configuration, its split and its models.

What is there already is not looked at: these are the figures of a run from its beginning.
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

# Training holds gradients, two moments and the weights.
TRAINING_COPIES = 4


@dataclass(frozen=True)
class ModelSize:
    """What a model is.

    Attributes:
        dims: D of each layer.
        weight_bytes: as stored.
    """

    dims: Sequence[int]
    weight_bytes: int


@dataclass(frozen=True)
class Stage:
    """What one stage takes.

    Attributes:
        work: by model id, pieces of it: optimizer steps, forward passes of one image, layers.
        unit: what a piece is.
        stored_bytes: that it writes.
        process_bytes: memory of each process, without a forward pass's activations.
        processes: at once.
    """

    name: str
    work: Mapping[str, int]
    unit: str
    stored_bytes: int
    process_bytes: int
    processes: int


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated of one model.

    Attributes:
        checkpoints: how many.
        images: of all splits and rotations, each counted once for a checkpoint.
        sets: shard sets.
        largest: images of the largest split.
    """

    checkpoints: int
    images: int
    sets: int
    largest: int

    @property
    def at_once(self) -> int:
        """Checkpoints that share each decoded image."""
        return min(CHECKPOINTS_AT_ONCE, self.checkpoints)


def evaluated(config: RunConfig, split: pa.Table, trials: Sequence[Trial]) -> dict[str, Evaluated]:
    """By model id. Of the hyperparameters that are tried one setting is chosen, which is evaluated with every seed."""
    names = splits_of(config, split)
    chosen: dict[str, set[tuple[int, int]]] = {}
    steps = {trial.model.id: len(steps_of(config, trial)) for trial in trials}
    for trial in trials:
        chosen.setdefault(trial.model.id, set()).add((trial.seed, trial.rotation))
    found = {}
    for model_id, kinds in chosen.items():
        counts = [
            splits.select(split, role_of(name), rotation).num_rows * steps[model_id]
            for _, rotation in kinds
            for name in names
        ]
        found[model_id] = Evaluated(
            len(kinds) * steps[model_id], sum(counts), len(counts) * steps[model_id], max(counts) // steps[model_id]
        )
    return found


def embed_pool(
    config: RunConfig, kept: Mapping[str, Evaluated], cluster: Resources, process_bytes: int = IMPORTED_BYTES
) -> placement.Pool:
    """The actors that embed what is evaluated, each with so much memory."""
    blocks = sum(-(-own.images // own.at_once // config.embed.shard_rows) for own in kept.values())
    return placement.embed_plan(config.compute, cluster, blocks, process_bytes).embed


def stages(
    config: RunConfig, split: pa.Table, trials: Sequence[Trial], models: Mapping[str, ModelSize], cluster: Resources
) -> list[Stage]:
    """What each stage takes.

    Args:
        models: by id, baselines as well.
    """
    kept = evaluated(config, split, trials)
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
        min(len(trials), _places(placement.trial_pool(config.compute, cluster, len(trials)), cluster)),
    )
    # Vectors of a block, as they come and as the file that is made of them.
    embed_bytes = IMPORTED_BYTES + max(
        own.at_once * (models[key].weight_bytes + 2 * 4 * config.embed.shard_rows * sum(models[key].dims))
        for key, own in kept.items()
    )
    held_bytes = IMPORTED_BYTES + max(own.at_once * models[key].weight_bytes for key, own in kept.items())
    pool = embed_pool(config, kept, cluster, held_bytes)
    embedding = Stage(
        "embed",
        {key: own.images for key, own in kept.items()},
        "forward passes",
        sum(own.images * sum(models[key].dims) * bytes_each for key, own in kept.items()),
        embed_bytes,
        pool.processes,
    )
    largest = max(4 * own.largest * max(models[key].dims) for key, own in kept.items())
    scoring = Stage(
        "score",
        {key: own.sets * len(models[key].dims) for key, own in kept.items()},
        "layers",
        0,
        placement.score_bytes(config.score, largest),
        placement.score_pool(config.compute, cluster, config.score, largest).processes,
    )
    return [training, embedding, scoring]


def require_room(
    found: Sequence[Stage], free_bytes: int | None, memory_bytes: int | None, held: Memory | None = None
) -> None:
    """Raise UsageError for what can't fit.

    Args:
        free_bytes: of the disk that the run is written to; None: not known.
        memory_bytes: of the machine that all processes run on; None: there are several machines.
        held: that memory and its limit, to say which of the two is too small.
    """
    problems = []
    stored = sum(stage.stored_bytes for stage in found)
    if free_bytes is not None and stored > free_bytes:
        problems.append(
            f"the run writes {in_units(stored)}, and its disk has {in_units(free_bytes)} left: take another --run-dir, "
            "fewer of finetune.evaluate_at or models[].layers, or embed.dtype=float16"
        )
    limit = f", by the limit of its control group, of {in_units(held.machine_bytes)}" if held and held.limited else ""
    problems += [
        f"{stage.name}: {stage.processes} process(es) of {in_units(stage.process_bytes)} each, and this machine has "
        f"{in_units(memory_bytes)} of memory{limit}: set compute.{COUNTS[stage.name]}, or use a larger machine"
        for stage in found
        if memory_bytes is not None and stage.processes * stage.process_bytes > memory_bytes
    ]
    if problems:
        raise UsageError("\n".join(["this can't fit; nothing was started:", *(f"  - {line}" for line in problems)]))


# The key that sets how many processes of a stage run at once.
COUNTS = {"finetune": "cpus_per_trial", "embed": "embed_actors", "score": "score_actors"}


def in_units(count: float) -> str:
    """Bytes for people.

    >>> in_units(1536), in_units(3 * 2**30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _places(pool: placement.Pool, cluster: Resources) -> int:
    return max(1, min(pool.processes, cluster.slots(pool.cpus, pool.gpus)))
