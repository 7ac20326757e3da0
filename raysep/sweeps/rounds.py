"""One round of a sweep: run the pending cells, record them, rank the models, and compare with the baseline."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raysep import __version__
from raysep.errors import ConfigError, RaysepError
from raysep.report.schema import Summary
from raysep.stages import run_directory
from raysep.storage import lease
from raysep.storage.store import Storage
from raysep.sweeps import compare, leaderboard, notes, results
from raysep.sweeps.cells import Cell, Inputs, cells_of, inputs_of
from raysep.sweeps.compare import Verdict
from raysep.sweeps.config import SweepConfig
from raysep.sweeps.results import DONE, FAILED, Row
from raysep.telemetry import Telemetry
from raysep.telemetry.exposition import exposed

if TYPE_CHECKING:
    from raysep.sweeps.launch import Outcome


@dataclass(frozen=True)
class Plan:
    """The state of a cell before the round.

    Attributes:
        inputs: hashes of images and weights; None if any are missing, so that the cell will fail.
        problem: the error message about missing images or weights.
        done: whether the round has a result for the cell and its cache key.
        seconds: median run time of the cell over earlier rounds; None without one.
    """

    cell: Cell
    inputs: Inputs | None
    problem: str | None
    done: bool
    seconds: float | None


@dataclass(frozen=True)
class Round:
    """The result of a round.

    Attributes:
        rows: the last row of each cell.
        verdict: the comparison with the baseline.
        damaged: messages about ignored files of the results table.
    """

    label: str
    rows: list[Row]
    verdict: Verdict
    damaged: list[str]

    @property
    def failed(self) -> list[Row]:
        """Rows of failed cells."""
        return [row for row in self.rows if row["state"] != DONE]


def rows_of(sweep: SweepConfig) -> list[Row]:
    """The rows of a sweep in its results table, which it may share with other sweeps; oldest first."""
    return _of_sweep(sweep, results.rows(Storage(sweep.results)))


def _of_sweep(sweep: SweepConfig, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["sweep"] == sweep.name]


def plan(sweep: SweepConfig, label: str, history: Sequence[Row]) -> list[Plan]:
    """The state of every cell. Raises ConfigError for invalid configurations of cells.

    Args:
        history: `rows_of(sweep)`.
    """
    done = {(row["cell"], row["key"]) for row in history if row["round"] == label and row["state"] == DONE}
    cells_done = {cell for cell, _ in done}
    plans = []
    for cell in cells_of(sweep):
        try:
            inputs, problem = inputs_of(cell), None
        except (RaysepError, OSError) as error:
            lines = error.problems if isinstance(error, ConfigError) else [str(error)]
            inputs, problem = None, "; ".join(lines)
        earlier = [row for row in history if row["cell"] == cell.name and row["state"] == DONE]
        seconds = [row["seconds"] for row in earlier if row["seconds"] is not None]
        # Finished cells stay done while their images or weights are unreachable.
        is_done = cell.name in cells_done if inputs is None else (cell.name, inputs.key) in done
        plans.append(Plan(cell, inputs, problem, is_done, statistics.median(seconds) if seconds else None))
    return plans


def perform(sweep: SweepConfig, label: str, telemetry: Telemetry, verbose: bool = False) -> Round:
    """Run the pending cells of a round.

    Raises:
        ConfigError: the configuration of a cell is invalid; no cell was started.
        UsageError: the directory belongs to another sweep.
        RaysepError: another process holds the lease of the sweep, or its directory is unreachable.
    """
    root = Storage(sweep.root)
    root.reach()
    metrics = telemetry.metrics
    metrics.build.info({"version": __version__, "revision": run_directory.git_revision() or "unknown"})
    with exposed(telemetry, sweep.monitoring, sweep.name):
        cells_of(sweep)
        with lease.held(root, "the sweep"):
            notes.check_owner(root, sweep.name)
            telemetry.journal.keep_in(root)
            metrics.running.labels("sweep").set(1)
            metrics.failed.set(1)
            notes.publish_last(sweep, metrics)
            try:
                result = _perform(sweep, root, label, telemetry, verbose)
                worse = result.verdict.regressions or result.verdict.incomparable
                metrics.failed.set(int(bool(result.failed or worse)))
            finally:
                metrics.running.labels("sweep").set(0)
                telemetry.journal.save()
    return result


def _perform(sweep: SweepConfig, root: Storage, label: str, telemetry: Telemetry, verbose: bool) -> Round:
    store, metrics = Storage(sweep.results).fenced(root), telemetry.metrics
    table = results.read(store)
    damaged = _quarantine(sweep, store, table, telemetry)
    history = _of_sweep(sweep, table.rows)
    plans = plan(sweep, label, history)
    # A missing baseline fails the round before any cell runs.
    _baseline(sweep, label, history)
    todo = [item for item in plans if not item.done]
    telemetry.line("sweep", f"round {label}: {len(plans) - len(todo)} of {len(plans)} cells are done", round=label)
    revision = run_directory.git_revision()
    with telemetry.stage("sweep", len(todo), "cells") as bar:
        for item, outcome in _outcomes(sweep, root, label, todo, verbose, telemetry):
            row = _row(sweep, label, item, outcome, revision)
            results.put(store, row)
            text = row["error"] or f"g {row['g']:.3f} in layer {row['best_layer']}"
            log = telemetry.line if row["state"] == FAILED else telemetry.event
            log("sweep", f"{row['cell']} {row['state']}: {text}", cell=row["cell"], model=row["model"])
            bar.advance(1, row["cell"])
    names = {item.cell.name for item in plans}
    history = rows_of(sweep)
    rows = [row for row in results.select(history, round=label) if row["cell"] in names]
    states = Counter(row["state"] for row in rows)
    verdict = _verdict(sweep, label, rows, history)
    for line in verdict.unjudged:
        telemetry.line("sweep", f"not compared with the baseline: {line}")
    report = root.at(f"report/{label}")
    leaderboard.write(report, f"{sweep.name}, round {label}", rows, verdict, damaged)
    telemetry.line("sweep", f"leaderboard: {report.display(leaderboard.PAGE)}")
    cells = {state: states[state] for state in (DONE, FAILED)}
    root.write_json(notes.LAST, {"round": label, "cells": cells, "regressions": len(verdict.regressions)})
    # A round with incomparable cells is no success.
    if states[DONE] == len(plans) and not verdict.regressions and not verdict.incomparable:
        root.write_json(notes.SUCCESS, {"round": label, "at": time.time()})
    notes.publish_last(sweep, metrics)
    return Round(label, rows, verdict, damaged)


def _quarantine(sweep: SweepConfig, store: Storage, table: results.Table, telemetry: Telemetry) -> list[str]:
    """Log the ignored files of the table, and move the damaged ones; returns the log lines."""
    moved = results.quarantine(store, table.damaged, sweep.name)
    lines = table.remarks(store)
    lines += [f"{store.display(path)} was moved to {store.display(target)}" for path, target in moved.items()]
    for line in lines:
        telemetry.line("results", line)
    return lines


def _outcomes(
    sweep: SweepConfig, root: Storage, label: str, todo: Sequence[Plan], verbose: bool, telemetry: Telemetry
) -> "Iterator[tuple[Plan, Outcome | None]]":
    """First the cells with missing inputs, without an outcome; then the others as their runs end."""
    yield from ((item, None) for item in todo if item.inputs is None)
    ready = [item for item in todo if item.inputs is not None]
    if not ready:
        return
    from raysep.distributed.connect import connection
    from raysep.sweeps.launch import run_cells

    may_add = max((item.cell.config.compute.addable for item in ready), key=len)
    with connection(verbose, may_add) as cluster:
        parallel = min(cluster.parts(sweep.parallel), len(ready))
        telemetry.line("ray", f"{cluster.describe()}; {parallel} concurrent cell(s)", nodes=list(cluster.kinds))
        configs = [
            # Cells serve no metrics, as nobody could scrape their changing ports: they write and push them at the end.
            item.cell.config.model_copy(
                update={
                    "run_dir": run_dir(sweep, label, item),
                    "monitoring": item.cell.config.monitoring.model_copy(update={"port": None}),
                }
            )
            for item in ready
        ]
        for number, outcome in run_cells(configs, cluster, parallel, root.fences):
            yield ready[number], outcome


def run_dir(sweep: SweepConfig, label: str, item: Plan) -> str:
    """URI of a cell's run directory, with its cache key, so that results of different inputs never mix."""
    assert item.inputs is not None
    return Storage(sweep.root).at(f"rounds/{label}/{item.cell.name}-{item.inputs.key[:12]}").full_uri


def _row(sweep: SweepConfig, label: str, item: Plan, outcome: "Outcome | None", revision: str | None) -> Row:
    now = datetime.now(UTC)
    row: dict[str, Any] = {
        "date": f"{now.astimezone(sweep.zone):%Y-%m-%d}",
        "at": now,
        "sweep": sweep.name,
        "round": label,
        "cell": item.cell.name,
        "key": item.inputs.key if item.inputs else None,
        "state": FAILED,
        "error": item.problem if outcome is None else outcome.error,
        **{axis: value for axis, value in item.cell.axes.items() if axis != "seed"},
        "seed": item.cell.axes["seed"] or None if item.cell.axes["seed"] != 0 else 0,
        "metric": item.cell.config.report.metric,
        "headline_protocol": item.cell.config.score.protocols[0],
        "raysep": __version__,
        "git_revision": revision,
        "data_sha256": item.inputs.data if item.inputs else None,
        "images": item.inputs.images if item.inputs else None,
    }
    if outcome is None:
        return row
    row |= {
        "seconds": None if outcome.seconds is None else round(outcome.seconds, 3),
        "worker_seconds": round(outcome.worker_seconds, 3),
        "machines": ", ".join(f"{count} x {kind}" for kind, count in outcome.machines.items()) or None,
        "run_dir": run_dir(sweep, label, item),
    }
    if outcome.summary is None:
        return row
    (model,) = Summary.model_validate_json(outcome.summary).models
    best = model.best
    row |= {"state": DONE, "seen_accuracy": model.seen_accuracy}
    if best is None:
        return {**row, "state": FAILED, "error": "no layer has a score"}
    g_low, g_high = best.interval or (None, None)
    low, high = best.corrected_interval or (None, None)
    return {
        **row,
        "g": best.g,
        "g_low": g_low,
        "g_high": g_high,
        "corrected_g": best.corrected_g,
        "corrected_low": low,
        "corrected_high": high,
        "best_layer": best.layer,
        "best_layer_name": best.name,
        "last_layer": best.last_layer,
        "tied_layers": best.tied_layers,
    }


def _verdict(sweep: SweepConfig, label: str, rows: Sequence[Row], history: Sequence[Row]) -> Verdict:
    if sweep.baseline is None:
        return Verdict()
    began = min(row["at"] for row in rows)
    earlier = [row for row in history if row["round"] != label and row["at"] < began]
    return compare.judge(sweep.baseline, _baseline(sweep, label, history, began), rows, earlier)


def _baseline(sweep: SweepConfig, label: str, history: Sequence[Row], began: datetime | None = None) -> list[Row]:
    """The baseline row of each cell: its last finished row of the configured round or day, or, if none is configured,
    from before this round.

    Raises:
        ConfigError: the results lack the configured round or day.
    """
    gate = sweep.baseline
    if gate is None:
        return []
    done = [row for row in history if row["state"] == DONE]
    if gate.round is None and gate.date is None:
        # Empty in the first round.
        return results.select(row for row in done if row["round"] != label and (began is None or row["at"] < began))
    rows = results.select(done, round=gate.round, date=gate.date)
    if not rows:
        raise ConfigError(
            [f"baseline: the results have no round or day {gate.round or gate.date}"], f"sweep {sweep.name}"
        )
    return rows
