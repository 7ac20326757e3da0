"""One round of a sweep: run each cell that is not done yet, record it, rank, and hold against the baseline."""

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
from raysep.sweeps.cells import Cell, Known, cells_of, known
from raysep.sweeps.compare import Verdict
from raysep.sweeps.config import SweepConfig
from raysep.sweeps.results import DONE, FAILED, Row
from raysep.telemetry import Telemetry
from raysep.telemetry.exposition import exposed

if TYPE_CHECKING:
    from raysep.sweeps.launch import Outcome


@dataclass(frozen=True)
class Plan:
    """A cell and what stands against running it or for leaving it.

    Attributes:
        known: None where its images or weights are not there: it will fail.
        done: whether this round has it already.
        seconds: median of its earlier rounds; None where there was none.
    """

    cell: Cell
    known: Known | None
    problem: str | None
    done: bool
    seconds: float | None


@dataclass(frozen=True)
class Round:
    """How a round ended.

    Attributes:
        rows: the last row of each of its cells.
        verdict: what the baseline says of them.
        damaged: files of the results table that were left out, in words.
    """

    label: str
    rows: list[Row]
    verdict: Verdict
    damaged: list[str]

    @property
    def failed(self) -> list[Row]:
        """Rows of cells that are not done."""
        return [row for row in self.rows if row["state"] != DONE]


def rows_of(sweep: SweepConfig) -> list[Row]:
    """The sweep's own rows of its results table, which it may share with others; oldest first."""
    return _own(sweep, results.rows(Storage(sweep.results)))


def _own(sweep: SweepConfig, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["sweep"] == sweep.name]


def plan(sweep: SweepConfig, label: str, before: Sequence[Row]) -> list[Plan]:
    """Every cell, with what is done of it. Raises ConfigError where a cell's configuration is wrong.

    Args:
        before: `rows_of` the sweep.
    """
    done = {(row["cell"], row["key"]) for row in before if row["round"] == label and row["state"] == DONE}
    cells_done = {cell for cell, _ in done}
    plans = []
    for cell in cells_of(sweep):
        try:
            found, problem = known(cell), None
        except (RaysepError, OSError) as error:
            lines = error.problems if isinstance(error, ConfigError) else [str(error)]
            found, problem = None, "; ".join(lines)
        own = [row for row in before if row["cell"] == cell.name and row["state"] == DONE]
        took = [row["seconds"] for row in own if row["seconds"] is not None]
        # What is done stays done while its images or weights can't be looked at.
        there = cell.name in cells_done if found is None else (cell.name, found.key) in done
        plans.append(Plan(cell, found, problem, there, statistics.median(took) if took else None))
    return plans


def perform(sweep: SweepConfig, label: str, telemetry: Telemetry, verbose: bool = False) -> Round:
    """Run a round, or what is missing of it.

    Raises:
        ConfigError: a cell's configuration is wrong; nothing was started.
        UsageError: the directory is another sweep's.
        RaysepError: another process is at this sweep, or its directory can't be reached.
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
            notes.report_last(sweep, metrics)
            try:
                found = _perform(sweep, root, label, telemetry, verbose)
                worse = found.verdict.regressions or found.verdict.incomparable
                metrics.failed.set(int(bool(found.failed or worse)))
            finally:
                metrics.running.labels("sweep").set(0)
                telemetry.journal.save()
    return found


def _perform(sweep: SweepConfig, root: Storage, label: str, telemetry: Telemetry, verbose: bool) -> Round:
    store, metrics = Storage(sweep.results).fenced(root), telemetry.metrics
    table = results.read(store)
    damaged = _leave_out(sweep, store, table, telemetry)
    before = _own(sweep, table.rows)
    plans = plan(sweep, label, before)
    # A baseline that isn't there is said before any cell runs.
    _standard(sweep, label, before)
    todo = [item for item in plans if not item.done]
    telemetry.line("sweep", f"round {label}: {len(plans) - len(todo)} of {len(plans)} cells are done", round=label)
    revision = run_directory.git_revision()
    with telemetry.stage("sweep", len(todo), "cells") as bar:
        for item, outcome in _outcomes(sweep, root, label, todo, verbose, telemetry):
            row = _row(sweep, label, item, outcome, revision)
            results.put(store, row)
            text = row["error"] or f"g {row['g']:.3f} in layer {row['best_layer']}"
            say = telemetry.line if row["state"] == FAILED else telemetry.event
            say("sweep", f"{row['cell']} {row['state']}: {text}", cell=row["cell"], model=row["model"])
            bar.advance(1, row["cell"])
    names = {item.cell.name for item in plans}
    every = rows_of(sweep)
    own = [row for row in results.select(every, round=label) if row["cell"] in names]
    states = Counter(row["state"] for row in own)
    verdict = _held_against(sweep, label, own, every)
    for line in verdict.unjudged:
        telemetry.line("sweep", f"not held against the baseline: {line}")
    report = root.at(f"report/{label}")
    leaderboard.write(report, f"{sweep.name}, round {label}", own, verdict, damaged)
    telemetry.line("sweep", f"leaderboard: {report.display(leaderboard.PAGE)}")
    cells = {state: states[state] for state in (DONE, FAILED)}
    root.write_json(notes.LAST, {"round": label, "cells": cells, "regressions": len(verdict.regressions)})
    # What was held against nothing is not known to be good.
    if states[DONE] == len(plans) and not verdict.regressions and not verdict.incomparable:
        root.write_json(notes.SUCCESS, {"round": label, "at": time.time()})
    notes.report_last(sweep, metrics)
    return Round(label, own, verdict, damaged)


def _leave_out(sweep: SweepConfig, store: Storage, table: results.Table, telemetry: Telemetry) -> list[str]:
    """Say which files of the table are no rows, and set aside those that are damaged."""
    moved = results.set_aside(store, table.damaged, sweep.name)
    lines = table.remarks(store)
    lines += [f"{store.display(path)} is now {store.display(target)}" for path, target in moved.items()]
    for line in lines:
        telemetry.line("results", line)
    return lines


def _outcomes(
    sweep: SweepConfig, root: Storage, label: str, todo: Sequence[Plan], verbose: bool, telemetry: Telemetry
) -> "Iterator[tuple[Plan, Outcome | None]]":
    """Cells whose data are not there at once, the others when they end."""
    yield from ((item, None) for item in todo if item.known is None)
    ready = [item for item in todo if item.known is not None]
    if not ready:
        return
    from raysep.distributed.connect import connection
    from raysep.sweeps.launch import run_cells

    may_add = max((item.cell.config.compute.addable for item in ready), key=len)
    with connection(verbose, may_add) as cluster:
        parallel = min(cluster.parts(sweep.parallel), len(ready))
        telemetry.line("ray", f"{cluster.describe()}; {parallel} cell(s) at once", nodes=list(cluster.kinds))
        configs = [
            # Cells come and go on whatever port there is: nobody could scrape them. They write and push at their ends.
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
    """Where a cell's run lies. Another key is another directory, so that no results are mixed."""
    assert item.known is not None
    return Storage(sweep.root).at(f"rounds/{label}/{item.cell.name}-{item.known.key[:12]}").full_uri


def _row(sweep: SweepConfig, label: str, item: Plan, outcome: "Outcome | None", revision: str | None) -> Row:
    now = datetime.now(UTC)
    row: dict[str, Any] = {
        "date": f"{now.astimezone(sweep.zone):%Y-%m-%d}",
        "at": now,
        "sweep": sweep.name,
        "round": label,
        "cell": item.cell.name,
        "key": item.known.key if item.known else None,
        "state": FAILED,
        "error": item.problem if outcome is None else outcome.error,
        **{axis: value for axis, value in item.cell.axes.items() if axis != "seed"},
        "seed": item.cell.axes["seed"] or None if item.cell.axes["seed"] != 0 else 0,
        "metric": item.cell.config.report.metric,
        "headline_protocol": item.cell.config.score.protocols[0],
        "raysep": __version__,
        "git_revision": revision,
        "data_sha256": item.known.data if item.known else None,
        "images": item.known.images if item.known else None,
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


def _held_against(sweep: SweepConfig, label: str, own: Sequence[Row], every: Sequence[Row]) -> Verdict:
    if sweep.baseline is None:
        return Verdict()
    began = min(row["at"] for row in own)
    earlier = [row for row in every if row["round"] != label and row["at"] < began]
    return compare.held_against(sweep.baseline, _standard(sweep, label, every, began), own, earlier)


def _standard(sweep: SweepConfig, label: str, every: Sequence[Row], began: datetime | None = None) -> list[Row]:
    """The row that each cell is held against: the last one that is done, before this round or of the one that is named.

    Raises:
        ConfigError: the round or day that is named isn't there.
    """
    gate = sweep.baseline
    if gate is None:
        return []
    done = [row for row in every if row["state"] == DONE]
    if gate.round is None and gate.date is None:
        # None in the first round, which is the standard of the next one.
        return results.select(row for row in done if row["round"] != label and (began is None or row["at"] < began))
    standard = results.select(done, round=gate.round, date=gate.date)
    if not standard:
        raise ConfigError(
            [f"baseline: the results have no round or day {gate.round or gate.date}"], f"sweep {sweep.name}"
        )
    return standard
