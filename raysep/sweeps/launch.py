"""Runs of a sweep's cells on the cluster: an actor per concurrent run, each with a share of the cluster.

A failed cell or lost worker affects no other cell. The actors end with the driver, so that no orphaned cell runs
in parallel with its restart.
"""

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from raysep import pipeline
from raysep.config import RunConfig
from raysep.distributed.cluster_shape import Resources
from raysep.errors import RaysepError
from raysep.stages import run_directory
from raysep.storage.store import Fence, Storage
from raysep.telemetry import Telemetry


@dataclass(frozen=True)
class Outcome:
    """The result of a cell's run.

    Attributes:
        summary: summary.json of a successful run.
        error: why the run failed.
        seconds: wall-clock time; None for a resumed run.
        worker_seconds: summed over the run's workers and calls.
        machines: number of nodes by kind.
    """

    summary: str | None
    error: str | None
    seconds: float | None
    worker_seconds: float = 0.0
    machines: dict[str, int] = field(default_factory=dict)


def run_cells(
    configs: Sequence[RunConfig], cluster: Resources, parallel: int, fences: tuple[Fence, ...] = ()
) -> Iterator[tuple[int, Outcome]]:
    """Run configurations, `parallel` at a time; yields index and outcome of each as it ends.

    Args:
        fences: fences of the sweep's lease; once the lease is lost, cells can't write.
    """
    from raysep.distributed.pool import on_this_node, run_tasks

    def build(slot: int) -> Callable[[], Callable[[tuple[int, RunConfig]], Outcome]]:
        return partial(_runner, str(Path.cwd()), cluster.share(slot, parallel), fences)

    # Without retries: a cell whose worker is lost counts as failed, and the next call of the round runs it again.
    for done in run_tasks(list(enumerate(configs)), build, parallel, on_this_node(), name="CellRunner", retries=0):
        outcome = done.result
        if outcome is None:
            outcome = Outcome(None, f"the worker of the run was lost: {done.error}", done.seconds)
        yield done.task[0], outcome


def _runner(directory: str, share: Resources, fences: tuple[Fence, ...]) -> Callable[[tuple[int, RunConfig]], Outcome]:
    """Set up an actor; returns the function that runs a cell."""
    # Relative paths in a configuration refer to the driver's working directory.
    os.chdir(directory)
    return lambda task: run_cell(task[1], share, fences)


def run_cell(config: RunConfig, share: Resources, fences: tuple[Fence, ...] = ()) -> Outcome:
    """Run a cell in this process; errors become part of the outcome."""
    store = Storage(config.run_dir)
    resumed = store.exists(run_directory.CONFIG)
    began = time.monotonic()
    error, text = None, None
    try:
        summary = pipeline.run(config, telemetry=Telemetry(Console(file=io.StringIO())), share=share, fences=fences)
        assert summary is not None
        # A cell with failed seeds is incomplete: the next call of the round runs it again.
        failed_trials = store.read_json(run_directory.MANIFEST)["stages"]["finetune"]["failed"]
        if summary.models and not failed_trials:
            text = summary.model_dump_json()
        else:
            error = "; ".join(summary.left_out) or "no model was evaluated"
    except RaysepError as failure:
        error = " ".join(str(failure).split())
    except Exception as failure:  # noqa: BLE001  (any error fails only this cell)
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
    seconds = None if resumed else time.monotonic() - began
    try:
        manifest = store.read_json(run_directory.MANIFEST)
    except FileNotFoundError:
        return Outcome(text, error, seconds)
    nodes = [entry for stage in manifest["stages"].values() for entry in stage.get("nodes", {}).values()]
    worker_seconds = sum(entry["seconds"] for entry in nodes)
    return Outcome(text, error, seconds, worker_seconds, manifest.get("machines", {}))
