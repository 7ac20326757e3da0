"""The stages in order. Each reads what the one before it wrote, and does only what is missing."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from raysep import __version__, integrity
from raysep.config import RunConfig
from raysep.data import inventory, splits
from raysep.distributed import joining, placement
from raysep.distributed.cluster_shape import Resources
from raysep.errors import UsageError
from raysep.stages import embed as embed_stage
from raysep.stages import finetune as finetune_stage
from raysep.stages import run_directory, validation
from raysep.stages import score as score_stage
from raysep.stages.context import RunContext, Stage
from raysep.stages.executor import Executor, open_executor
from raysep.storage import lease, retries
from raysep.storage.store import Fence, Storage, is_uri
from raysep.telemetry import Telemetry
from raysep.telemetry.exposition import exposed

if TYPE_CHECKING:
    from raysep.report.schema import Summary

# The stages that an executor works for.
WORK: dict[str, Stage] = {"finetune": finetune_stage, "embed": embed_stage, "score": score_stage}
STAGES = (*WORK, "report")


def run(
    config: RunConfig,
    stages: Sequence[str] = STAGES,
    *,
    config_name: str = "configuration",
    verbose: bool = False,
    telemetry: Telemetry | None = None,
    share: Resources | None = None,
    executor: Executor | None = None,
    fences: tuple[Fence, ...] = (),
) -> "Summary | None":
    """Do what is missing of the stages.

    Ray is started, or joined, only if there is work for it.

    Args:
        config: the run.
        stages: of `STAGES`, in their order.
        config_name: for messages.
        verbose: let Ray's own lines through.
        telemetry: where progress goes.
        share: the part of the cluster that this run may plan with; all of it if unset.
        executor: where the work runs; on Ray if unset.
        fences: of a sweep that the run is a cell of, beside the lease of the run itself.

    Returns:
        The summary if `report` is among the stages.

    Raises:
        UsageError: refused before any work.
        RaysepError: the run directory or the cluster can't be reached.
        StageError: a stage failed; what was committed before it stays valid.
    """
    telemetry = telemetry or Telemetry()
    storage = Storage(config.run_dir, fences)
    if executor is None and any(stage in WORK for stage in stages):
        joining.check_named()
    storage.reach()
    # A directory that is this run's already was checked when it was begun: its models need no second look.
    if storage.exists(run_directory.CONFIG):
        readers, split = validation.check_data(config)
        begun = run_directory.check_belongs(storage, config, split)
    else:
        fetched = sum(model.pretrained is True and model.local_directory is None for model in config.models)
        hub = f", weights of {fetched} from the hub" if fetched else ""
        telemetry.line("checks", f"images and {len(config.models)} model(s){hub}")
        readers, split = validation.check_all(config, config_name, lambda line: telemetry.line("checks", line))
        begun = run_directory.check_belongs(storage, config, split)
    current = RunContext(
        run_directory.with_absolute_paths(config),
        storage,
        readers,
        split,
        telemetry,
        executor or open_executor("ray"),
        verbose,
    )
    wanted = [stage for stage in stages if stage in WORK]
    busy = any(WORK[stage].pending(current) for stage in wanted)
    # A run that only looks whether there is something to do is over before anybody could ask it.
    metrics = config.monitoring if busy else config.monitoring.model_copy(update={"port": None})
    with exposed(telemetry, metrics, config.name), _kept(current, begun):
        if busy:
            with lease.held(storage, "the run"):
                _perform(current, wanted, begun, share)
        else:
            for stage in wanted:
                telemetry.line(stage, "nothing left to do")
        if "report" not in stages:
            return None
        # Only now what takes a second to import and no other stage needs.
        from raysep.stages import report as report_stage

        return report_stage.perform(current)


def repair(config: RunConfig, telemetry: Telemetry) -> None:
    """Verify a run, and take away what is wrong with it, so that the next call does it again. Nothing where no run is.

    Raises:
        RaysepError: something that can't be done again.
    """
    storage = Storage(config.run_dir)
    storage.reach()
    if not storage.exists(run_directory.CONFIG):
        return
    with lease.held(storage, "the run"):
        found = integrity.verify(storage)
        for finding in found.findings:
            telemetry.line("repair", f"{finding.path}: {finding.what}")
        removed = integrity.repair(storage, found.findings)
    telemetry.line("repair", f"{len(removed)} pieces to do again")


def _perform(current: RunContext, stages: Sequence[str], begun: bool, share: Resources | None) -> None:
    config, telemetry = current.config, current.telemetry
    telemetry.line("ray", "starting")
    with current.executor.connect(current.verbose, config.compute.addable) as whole:
        cluster = share or whole
        placement.check(config.compute, cluster)
        telemetry.line("ray", cluster.describe(), nodes=list(cluster.kinds))
        _check_shared(config, current)
        if not begun:
            looked = inventory.inspect(config.data, current.readers, current.split)
            inventory.check_readable(config.data, looked)
            remarks = inventory.remarks_of(config.data, current.readers, current.split, looked)
            run_directory.begin(current.store, config, current.split, remarks)
        telemetry.journal.keep_in(current.store)
        run_directory.record_machines(current.store, cluster.kinds)
        telemetry.line("data", _counted(config, current.split))
        for sentence in run_directory.data_remarks(current.store):
            telemetry.line("data", sentence)
        for stage in stages:
            with _counting_retries(current, stage):
                # Asked again at its turn: what a stage before it did may have left it something to do.
                if WORK[stage].pending(current):
                    began = time.monotonic()
                    WORK[stage].perform(current, cluster)
                    telemetry.event(stage, f"done in {time.monotonic() - began:.1f} s")
                else:
                    telemetry.line(stage, "nothing left to do")


def _check_shared(config: RunConfig, current: RunContext) -> None:
    """Raise UsageError where nodes don't see what the run reads and writes on this node's disk."""
    places = [model.pretrained for model in config.models if isinstance(model.pretrained, str)]
    places += [model.local_directory for model in config.models if model.local_directory is not None]
    sources = [config.data.source, *(domain.source for domain in config.data.domains)]
    places += [path for source in sources if (path := getattr(source, "path", None)) and Path(path).exists()]
    places.append(current.store.full_uri)
    local = [Storage(place) for place in places if not is_uri(place) or place.startswith("file:")]
    missing = current.executor.missing_on_nodes([storage.root for storage in local])
    if not missing:
        return
    lines = [f"  - {node}: no {', '.join(paths)}" for node, paths in sorted(missing.items())]
    raise UsageError(
        "\n".join(
            [
                "this cluster has nodes that don't see what is on this node's disk:",
                *lines,
                "Use URIs (s3://..., gs://...) for --run-dir, data.source.path and models[].pretrained, or directories "
                "that all nodes mount; no work was started.",
            ]
        )
    )


@contextmanager
def _counting_retries(current: RunContext, stage: str) -> Iterator[None]:
    """Add what was begun again to the run's manifest, also where the block fails."""
    telemetry, before = current.telemetry, retries.count()
    away = False
    try:
        yield
    except OSError as error:
        # Storage that is away would only be waited for once more.
        away = retries.is_transient(error)
        raise
    finally:
        if own := retries.count() - before:
            telemetry.retried(stage, "storage", own)
        if telemetry.again and not away:
            # What ended the stage is the error to be told of.
            with contextlib.suppress(OSError, KeyError):
                run_directory.record_retries(current.store, telemetry.again)
        telemetry.again.clear()


@contextmanager
def _kept(current: RunContext, begun: bool) -> Iterator[None]:
    """Log how the call began and ended, and keep the log in the run's directory if it is one."""
    telemetry, metrics = current.telemetry, current.telemetry.metrics
    metrics.build.info({"version": __version__, "revision": run_directory.git_revision() or "unknown"})
    metrics.run.info({"name": current.config.name, "run_dir": current.store.display()})
    metrics.running.labels("run").set(1)
    metrics.failed.set(0)
    try:
        yield
    except BaseException as error:
        if begun:
            telemetry.journal.keep_in(current.store)
        metrics.failed.set(1)
        telemetry.event("run", f"ended by {type(error).__name__}: {error}", level="error")
        raise
    finally:
        metrics.running.labels("run").set(0)
        telemetry.journal.save()


def _counted(config: RunConfig, split: pa.Table) -> str:
    """How many images have which role, by rotation if there are several."""
    roles = [splits.SEEN_TRAIN, splits.SEEN_TEST, splits.UNSEEN, *(domain.name for domain in config.data.domains)]
    counts = {
        role: "/".join(str(splits.select(split, role, rotation).num_rows) for rotation in range(config.data.rotations))
        for role in roles
    }
    return ", ".join(f"{role} {count}" for role, count in counts.items()) + " images"
