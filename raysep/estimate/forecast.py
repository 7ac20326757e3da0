"""A run's figures put together: what `raysep plan` prints."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from rich.table import Table
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


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        images: by split.
        models: by id.
        stages: in their order.
        seconds: of each stage, without the starting of processes.
        cluster: what the processes run on.
        memory: of this machine, where it is all there is.
    """

    images: dict[str, int]
    models: dict[str, ModelSize]
    stages: list[Stage]
    seconds: dict[str, float]
    cluster: Resources
    memory: limits.Memory | None = None

    def table(self) -> Table:
        """For the terminal."""
        machine = self.cluster.describe() + (f"; memory {memory_in_words(self.memory)}" if self.memory else "")
        images = ", ".join(f"{count} {name}" for name, count in self.images.items())
        table = Table(title=f"{images} images", caption=machine)
        for heading in ("stage", "model", "work", "writes", "memory a process", "processes", "estimated time"):
            table.add_column(heading, justify="left" if heading in {"stage", "model"} else "right")
        for stage in self.stages:
            rows = list(stage.work.items()) or [("", 0)]
            for place, (model, count) in enumerate(rows):
                whole = place == len(rows) - 1
                table.add_row(
                    stage.name if place == 0 else "",
                    f"{model} ({len(self.models[model].dims)} layers)" if model else "",
                    f"{count:,} {stage.unit}",
                    in_units(stage.stored_bytes) if whole else "",
                    in_units(stage.process_bytes) if whole else "",
                    str(stage.processes) if whole else "",
                    _duration(self.seconds[stage.name]) if whole else "",
                    end_section=whole,
                )
        return table


def forecast(config: RunConfig, split: pa.Table, readers: dict[str, Reader], cluster: Resources) -> Forecast:
    """Probe every model for some seconds, and add up.

    Raises:
        UsageError: it can't fit.
    """
    trials = planned_trials(config)
    kept = evaluated(config, split, trials)
    role = role_of(splits_of(config, split)[0])
    rows, reader = splits.select(split, role), readers[role]
    configs = {trial.model.id: trial.model for trial in trials}
    # As the processes that do the work: one thread each where each has a CPU.
    threads = embed_pool(config, kept, cluster).threads
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            probes = {key: speed.ModelProbe(model, rows, reader) for key, model in configs.items()}
            models = {key: probe.size for key, probe in probes.items()}
            found = stages(config, split, trials, models, cluster)
            held = limits.memory() if len(cluster.nodes) == 1 else None
            require_room(found, free_bytes(config.run_dir), held.bytes if held else None, held)
            seconds = {stage.name: 0.0 for stage in found}
            batch = config.finetune.batch_size if config.finetune else 0
            for key, probe in probes.items():
                decoding, embedding = probe.decoding(), probe.embedding(config)
                seconds["embed"] += kept[key].images * (embedding + decoding / kept[key].at_once)
                trained = found[0].work.get(key, 0)
                seconds["finetune"] += trained * (probe.training(batch) + batch * decoding) if trained else 0.0
            classes = len(rows["label"].unique())
            # One layer stands for all of them: of their mean size.
            sets = sum(own.sets for own in kept.values())
            dims = [dim for size in models.values() for dim in size.dims]
            layer = speed.scoring(
                config, sum(own.images for own in kept.values()) // sets, sum(dims) // len(dims), classes
            )
            seconds["score"] = layer * sum(found[2].work.values())
    finally:
        torch.set_num_threads(before)
    images = {name: splits.select(split, role_of(name)).num_rows for name in splits_of(config, split)}
    each = {stage.name: seconds[stage.name] / stage.processes for stage in found}
    return Forecast(images, models, found, each, cluster, held)


def free_bytes(run_dir: str) -> int | None:
    """Left on the disk of a run directory that need not be there yet; None for object stores."""
    if is_uri(run_dir):
        return None
    place = Path(Storage(run_dir).root).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def memory_in_words(held: limits.Memory) -> str:
    """Memory and the limit that holds.

    >>> memory_in_words(limits.Memory(4 * 2**30, 64 * 2**30)), memory_in_words(limits.Memory(2**30, 2**30))
    ('4.0 GiB (limit of the control group) of 64.0 GiB', '1.0 GiB')
    """
    limit = f" (limit of the control group) of {in_units(held.machine_bytes)}" if held.limited else ""
    return in_units(held.bytes) + limit


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
