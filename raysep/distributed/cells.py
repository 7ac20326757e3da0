"""Ray around the runs of cells: an actor for each that runs at once, each with its share of the cluster.

A cell that fails, or takes its process with it, costs no other. The actors end with the driver, however that ends, so
that no cell goes on by itself and is begun a second time.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysep.config import RunConfig
from raysep.distributed.cluster_shape import Resources
from raysep.distributed.connect import cause


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        summary: summary.json, where the run was done.
        error: why it wasn't.
        seconds: wall clock; None for a cell that an earlier call had begun.
        worker_seconds: of all workers together, by the run's bill, in all calls.
    """

    summary: str | None
    error: str | None
    seconds: float | None
    worker_seconds: float = 0.0
    machines: dict[str, int] = field(default_factory=dict)


class CellRunner:
    """Runs whole runs in a process of its own."""

    def __init__(self, directory: str, share: Resources) -> None:
        # Relative paths of a configuration mean the driver's working directory.
        os.chdir(directory)
        self._share = share

    def run(self, config: RunConfig) -> Outcome:
        """A cell's run, or why it could not be done."""
        import io

        from rich.console import Console

        from raysep import pipeline
        from raysep.errors import RaysepError
        from raysep.stages import run_directory
        from raysep.storage.store import Storage
        from raysep.telemetry import Telemetry

        storage = Storage(config.run_dir)
        resumed = storage.exists(run_directory.CONFIG)
        began = time.monotonic()
        telemetry = Telemetry(Console(file=io.StringIO()))
        error, text = None, None
        try:
            summary = pipeline.run(config, telemetry=telemetry, share=self._share)
            assert summary is not None
            # A cell whose seeds are not all there is not what was asked for: it is tried again.
            lost = storage.read_json(run_directory.MANIFEST)["stages"]["finetune"]["failed"]
            if summary.models and not lost:
                text = summary.model_dump_json()
            else:
                error = "; ".join(summary.left_out) or "no model was evaluated"
        except RaysepError as failure:
            error = " ".join(str(failure).split())
        except Exception as failure:  # noqa: BLE001  (whatever a cell does, the others go on; it is reported as failed)
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        seconds = None if resumed else time.monotonic() - began
        try:
            manifest = storage.read_json(run_directory.MANIFEST)
        except FileNotFoundError:
            return Outcome(text, error, seconds)
        nodes = [entry for stage in manifest["stages"].values() for entry in stage.get("nodes", {}).values()]
        charged = sum(entry["seconds"] for entry in nodes)
        return Outcome(text, error, seconds, charged, manifest.get("machines", {}))


def run_all(configs: Sequence[RunConfig], cluster: Resources, parallel: int) -> Iterator[tuple[int, Outcome]]:
    """Run configurations, `parallel` at a time; yields position and outcome of each when it ends."""
    left = deque(enumerate(configs))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind = ray.remote(num_cpus=0)(CellRunner)
    busy: dict[Any, tuple[Any, int, int, float]] = {}

    def begin(actor: Any, share: int) -> None:
        number, config = left.popleft()
        busy[actor.run.remote(config)] = actor, share, number, time.monotonic()

    def hire(share: int) -> Any:
        return kind.options(scheduling_strategy=here).remote(os.getcwd(), cluster.share(share, parallel))  # noqa: PTH109  (as text, for chdir)

    try:
        for share in range(min(parallel, len(configs))):
            begin(hire(share), share)
        while busy:
            (done,), _ = ray.wait(list(busy), num_returns=1)
            actor, share, number, began = busy.pop(done)
            try:
                outcome = ray.get(done)
            except RayError as error:
                # Out of memory, killed, its node gone: whatever it was, that process runs no other cell.
                outcome = Outcome(None, f"the process of the run was lost: {cause(error)}", time.monotonic() - began)
                ray.kill(actor)
                actor = hire(share)
            if left:
                begin(actor, share)
            else:
                ray.kill(actor)
            yield number, outcome
    finally:
        # As in `separability/actors.py`: never after the end of Ray.
        if ray.is_initialized():
            for actor, *_ in busy.values():
                ray.kill(actor)
