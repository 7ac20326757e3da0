"""Run the stages in order. Each reads the files of the previous stage, and does only pending work."""

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
from raysep.distributed import placement
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

# The stages that run on an executor.
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
    """Do the pending work of the stages. Ray is started or joined only if there is any.

    Args:
        config: the run.
        stages: names from `STAGES`, in its order.
        config_name: name of the configuration, for messages.
        verbose: print Ray's own log lines.
        telemetry: reports the progress.
        share: the part of the cluster that this run may use; all of it if unset.
        executor: runs the work; Ray if unset.
        fences: the leases of the sweep that this run belongs to; checked in addition to the run's own lease.

    Returns:
        The summary if `report` is among the stages.

    Raises:
        UsageError: the request is wrong; no work was begun.
        RaysepError: the run directory or the cluster is unreachable.
        StageError: a stage failed; results that are already committed stay valid.
    """
    telemetry = telemetry or Telemetry()
    storage = Storage(config.run_dir, fences)
    executor = executor or open_executor("ray")
    if any(stage in WORK for stage in stages):
        executor.check()
    storage.reach()
    # Models are checked once, when a run begins.
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
        executor,
        verbose,
    )
    wanted = [stage for stage in stages if stage in WORK]
    busy = any(WORK[stage].pending(current) for stage in wanted)
    # A run without pending work ends before anybody could scrape its metrics: don't serve them.
    metrics = config.monitoring if busy else config.monitoring.model_copy(update={"port": None})
    with exposed(telemetry, metrics, config.name), _logged(current, begun):
        if busy:
            with lease.held(storage, "the run"):
                _perform(current, wanted, begun, share)
        else:
            for stage in wanted:
                telemetry.line(stage, "nothing left to do")
        if "report" not in stages:
            return None
        # Imported late: it takes a second, and no other stage needs it.
        from raysep.stages import report as report_stage

        return report_stage.perform(current)


def repair(config: RunConfig, telemetry: Telemetry) -> None:
    """Verify a run, and delete its damaged files, so that the next call recomputes them. No-op without a run.

    Raises:
        RaysepError: a damaged file can't be recomputed.
    """
    storage = Storage(config.run_dir)
    storage.reach()
    if not storage.exists(run_directory.CONFIG):
        return
    with lease.held(storage, "the run"):
        findings = integrity.verify(storage).findings
        for finding in findings:
            telemetry.line("repair", f"{finding.path}: {finding.what}")
        removed = integrity.repair(storage, findings)
    telemetry.line("repair", f"removed {len(removed)} file(s); the next call recomputes them")


def _perform(current: RunContext, stages: Sequence[str], begun: bool, share: Resources | None) -> None:
    config, telemetry = current.config, current.telemetry
    telemetry.line(current.executor.name, "starting")
    with current.executor.connect(current.verbose, config.compute.addable) as whole:
        cluster = share or whole
        placement.check(config.compute, cluster)
        telemetry.line(current.executor.name, cluster.describe(), nodes=list(cluster.kinds))
        _check_shared(config, current)
        if not begun:
            samples = inventory.inspect(config.data, current.readers, current.split)
            inventory.check_readable(config.data, samples)
            remarks = inventory.remarks_of(config.data, current.readers, current.split, samples)
            run_directory.begin(current.store, config, current.split, remarks)
        telemetry.journal.keep_in(current.store)
        run_directory.record_machines(current.store, cluster.kinds)
        telemetry.line("data", _image_counts(config, current.split))
        for sentence in run_directory.data_remarks(current.store):
            telemetry.line("data", sentence)
        for stage in stages:
            with _recording_retries(current, stage):
                # Checked again here: an earlier stage may have created work for this one.
                if WORK[stage].pending(current):
                    began = time.monotonic()
                    WORK[stage].perform(current, cluster)
                    telemetry.event(stage, f"done in {time.monotonic() - began:.1f} s")
                else:
                    telemetry.line(stage, "nothing left to do")


def _check_shared(config: RunConfig, current: RunContext) -> None:
    """Raise UsageError if a node lacks a local path that the run reads or writes."""
    uris = [model.pretrained for model in config.models if isinstance(model.pretrained, str)]
    uris += [model.local_directory for model in config.models if model.local_directory is not None]
    sources = [config.data.source, *(domain.source for domain in config.data.domains)]
    uris += [path for source in sources if (path := getattr(source, "path", None)) and Path(path).exists()]
    uris.append(current.store.full_uri)
    local = [Storage(uri) for uri in uris if not is_uri(uri) or uri.startswith("file:")]
    missing = current.executor.missing_on_nodes([storage.root for storage in local])
    if not missing:
        return
    lines = [f"  - {node}: no {', '.join(paths)}" for node, paths in sorted(missing.items())]
    raise UsageError(
        "\n".join(
            [
                "some nodes of this cluster lack paths of this node's disk:",
                *lines,
                "Use URIs (s3://..., gs://...) for --run-dir, data.source.path and models[].pretrained, or directories "
                "that all nodes mount; no work was started.",
            ]
        )
    )


@contextmanager
def _recording_retries(current: RunContext, stage: str) -> Iterator[None]:
    """Add the retries of a `with` block to the run's manifest, also if the block fails."""
    telemetry, before = current.telemetry, retries.count()
    unreachable = False
    try:
        yield
    except OSError as error:
        # Writing to unreachable storage would only repeat the same retries.
        unreachable = retries.is_transient(error)
        raise
    finally:
        if storage_retries := retries.count() - before:
            telemetry.retried(stage, "storage", storage_retries)
        if telemetry.retries and not unreachable:
            # An error here must not hide the one that ended the stage.
            with contextlib.suppress(OSError, KeyError):
                run_directory.record_retries(current.store, telemetry.retries)
        telemetry.retries.clear()


@contextmanager
def _logged(current: RunContext, begun: bool) -> Iterator[None]:
    """Log the start and the end of the call; save the log in the run directory once the run has begun."""
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
        telemetry.event("run", f"failed with {type(error).__name__}: {error}", level="error")
        raise
    finally:
        metrics.running.labels("run").set(0)
        telemetry.journal.save()


def _image_counts(config: RunConfig, split: pa.Table) -> str:
    """Number of images of each role of the split, as text; for each draw of unseen classes if there are several."""
    roles = [splits.SEEN_TRAIN, splits.SEEN_TEST, splits.UNSEEN, *(domain.name for domain in config.data.domains)]
    counts = {
        role: "/".join(str(splits.select(split, role, rotation).num_rows) for rotation in range(config.data.rotations))
        for role in roles
    }
    return ", ".join(f"{role} {count}" for role, count in counts.items()) + " images"
