"""The stages in order. Each reads what the one before it wrote, and does only what is missing."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pyarrow as pa

from raysep import checks, planning, runs
from raysep.cluster import connection
from raysep.config import RunConfig
from raysep.context import Run
from raysep.data import splits
from raysep.embed import stage as embed_stage
from raysep.finetune import stage as finetune_stage
from raysep.report import stage as report_stage
from raysep.report.schema import Summary
from raysep.separability import stage as score_stage
from raysep.storage import Storage
from raysep.telemetry import Telemetry

# The stages that need Ray: each says whether it is `pending`, and can `perform`.
WORK: dict[str, ModuleType] = {"finetune": finetune_stage, "embed": embed_stage, "score": score_stage}
STAGES = (*WORK, "report")


def run(
    config: RunConfig,
    stages: Sequence[str] = STAGES,
    *,
    config_name: str = "configuration",
    verbose: bool = False,
    telemetry: Telemetry | None = None,
) -> Summary | None:
    """Do what is missing of the stages.

    Ray is started, or joined, only if there is work for it.

    Args:
        config: the run.
        stages: of `STAGES`, in their order.
        config_name: for messages.
        verbose: let Ray's own lines through.
        telemetry: where progress goes.

    Returns:
        The summary if `report` is among the stages.

    Raises:
        UsageError: refused before any work, with nothing written.
        StageError: a stage failed; what was committed before it stays valid.
    """
    telemetry = telemetry or Telemetry()
    storage = Storage(config.run_dir)
    # A directory that is this run's already was checked when it was begun: its models need no second look.
    if storage.exists(runs.CONFIG):
        readers, split = checks.check_data(config)
        begun = runs.check_belongs(storage, config, split)
    else:
        fetched = sum(model.pretrained is True for model in config.models)
        hub = f", weights of {fetched} from the hub" if fetched else ""
        telemetry.line("checks", f"images and {len(config.models)} model(s){hub}")
        readers, split = checks.check_all(config, config_name)
        begun = runs.check_belongs(storage, config, split)
    current = Run(_with_absolute_paths(config), storage, readers, split, telemetry, verbose)
    if any(WORK[stage].pending(current) for stage in stages if stage in WORK):
        telemetry.line("ray", "starting")
        with connection(verbose) as cluster:
            planning.check(config.compute, cluster)
            telemetry.line("ray", f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs on {len(cluster.nodes)} node(s)")
            if not begun:
                runs.begin(storage, config, split)
            telemetry.line("data", _counted(config, split))
            for stage in stages:
                # Asked again at its turn: what a stage before it did may have left it something to do.
                if stage in WORK and WORK[stage].pending(current):
                    WORK[stage].perform(current, cluster)
                elif stage in WORK:
                    telemetry.line(stage, "nothing left to do")
    else:
        for stage in stages:
            if stage in WORK:
                telemetry.line(stage, "nothing left to do")
    return report_stage.perform(current) if "report" in stages else None


def _counted(config: RunConfig, split: pa.Table) -> str:
    """How many images have which role, by rotation if there are several."""
    roles = [splits.SEEN_TRAIN, splits.SEEN_TEST, splits.UNSEEN, *(domain.name for domain in config.data.domains)]
    counts = {
        role: "/".join(str(splits.select(split, role, rotation).num_rows) for rotation in range(config.data.rotations))
        for role in roles
    }
    return ", ".join(f"{role} {count}" for role, count in counts.items()) + " images"


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """Paths of weights as workers must know them: theirs is another working directory."""
    models = [
        model.model_copy(update={"pretrained": str(Path(model.pretrained).resolve())})
        if isinstance(model.pretrained, str)
        else model
        for model in config.models
    ]
    return config.model_copy(update={"models": models})
