"""The forecast of a run, which `raysep plan` prints."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from raysep.config import RunConfig
from raysep.data import splits
from raysep.data.source import Reader
from raysep.distributed import limits
from raysep.distributed.cluster_shape import Resources
from raysep.estimate import speed
from raysep.estimate.sizes import ModelSize, Stage, embed_pool, evaluated, in_units, require_room, stages
from raysep.stages.worklist import planned_trials, role_of, splits_of
from raysep.storage.store import Storage, is_uri

HEAD = ("stage", "model", "work", "writes", "memory per process", "processes", "estimated time")


@dataclass(frozen=True)
class Forecast:
    """Estimated sizes and times of a run.

    Attributes:
        images: number of images, by split.
        models: sizes, by model id.
        stages: sizes of the stages, in their order.
        seconds: wall-clock time of each stage, without the start-up of processes.
        cluster: resources that the processes run on.
        memory: memory of this machine; None on a cluster of several nodes.
    """

    images: dict[str, int]
    models: dict[str, ModelSize]
    stages: list[Stage]
    seconds: dict[str, float]
    cluster: Resources
    memory: limits.Memory | None = None

    @property
    def title(self) -> str:
        """Number of images of each split, as text."""
        return ", ".join(f"{count} {name}" for name, count in self.images.items()) + " images"

    @property
    def caption(self) -> str:
        """Resources of the cluster, as text."""
        return self.cluster.describe() + (f"; memory {describe_memory(self.memory)}" if self.memory else "")

    def rows(self) -> Iterator[list[str]]:
        """A row for each stage and model, with the columns of `HEAD`; the last row of a stage has its totals."""
        for stage in self.stages:
            work = [
                [f"{model} ({len(self.models[model].dims)} layers)", f"{count:,} {stage.unit}"]
                for model, count in stage.work.items()
            ] or [["", f"0 {stage.unit}"]]
            totals = [in_units(stage.stored_bytes), in_units(stage.process_bytes), str(stage.processes)]
            totals.append(_duration(self.seconds[stage.name]))
            for position, cells in enumerate(work):
                last = position == len(work) - 1
                yield [stage.name if position == 0 else "", *cells, *(totals if last else [""] * len(totals))]


def forecast(config: RunConfig, split: pa.Table, readers: dict[str, Reader], cluster: Resources) -> Forecast:
    """Time each model on a few images, and extrapolate to the whole run. The call takes seconds.

    Raises:
        UsageError: the run doesn't fit on the disk or in memory.
    """
    trials = planned_trials(config)
    by_model = evaluated(config, split, trials)
    role = role_of(splits_of(config, split)[0])
    rows, reader = splits.select(split, role), readers[role]
    configs = {trial.model.id: trial.model for trial in trials}
    # The number of threads of the actors that embed.
    threads = embed_pool(config, by_model, cluster).threads
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            probes = {key: speed.ModelProbe(model, rows, reader) for key, model in configs.items()}
            models = {key: probe.size for key, probe in probes.items()}
            estimates = stages(config, split, trials, models, cluster)
            memory = limits.memory() if len(cluster.nodes) == 1 else None
            require_room(estimates, free_bytes(config.run_dir), memory.bytes if memory else None, memory)
            seconds = {stage.name: 0.0 for stage in estimates}
            batch = config.finetune.batch_size if config.finetune else 0
            for key, probe in probes.items():
                decoding, embedding = probe.decoding(), probe.embedding(config)
                seconds["embed"] += by_model[key].images * (embedding + decoding / by_model[key].at_once)
                trained = estimates[0].work.get(key, 0)
                seconds["finetune"] += trained * (probe.training(batch) + batch * decoding) if trained else 0.0
            classes = len(rows["label"].unique())
            # Extrapolate from one layer of mean size.
            sets = sum(model.sets for model in by_model.values())
            dims = [dim for size in models.values() for dim in size.dims]
            layer = speed.scoring(
                config, sum(model.images for model in by_model.values()) // sets, sum(dims) // len(dims), classes
            )
            seconds["score"] = layer * sum(estimates[2].work.values())
    finally:
        torch.set_num_threads(before)
    images = {name: splits.select(split, role_of(name)).num_rows for name in splits_of(config, split)}
    each = {stage.name: seconds[stage.name] / stage.processes for stage in estimates}
    return Forecast(images, models, estimates, each, cluster, memory)


def free_bytes(run_dir: str) -> int | None:
    """Free bytes on the disk of a run directory, which need not exist yet; None for object stores."""
    if is_uri(run_dir):
        return None
    path = Path(Storage(run_dir).root).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def describe_memory(memory: limits.Memory) -> str:
    """Available memory, and the limit if there is one, as text.

    >>> describe_memory(limits.Memory(4 * 2**30, 64 * 2**30)), describe_memory(limits.Memory(2**30, 2**30))
    ('4.0 GiB (limit of the control group) of 64.0 GiB', '1.0 GiB')
    """
    limit = f" (limit of the control group) of {in_units(memory.machine_bytes)}" if memory.limited else ""
    return in_units(memory.bytes) + limit


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
