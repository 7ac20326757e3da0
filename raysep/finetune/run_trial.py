"""Run one trial, under Ray Tune or in this process, and create its `TrialResult`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysep.config import FinetuneConfig
from raysep.data.source import Reader
from raysep.finetune import resume, training
from raysep.finetune.trials import State, Trial, TrialResult, write_result
from raysep.storage.store import Storage, check_visible
from raysep.telemetry.worker_stats import Meter, Report

# A progress report of a trial, as plain values that Ray Tune sends from the worker to the driver.
Progress = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Inputs that all trials of a run share."""

    config: FinetuneConfig | None
    store: Storage
    split: pa.Table
    source: Reader
    max_failed_share: float


def run_trial(
    trial: Trial,
    job: Job,
    device: str,
    meter: Meter,
    report: Callable[[Progress], None],
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Train a trial and report each evaluation with all earlier ones, as Ray Tune keeps only the last report.

    The result of a finished trial is written before its last report, so that no later failure can lose it.
    """
    assert job.config is not None
    check_visible(job.store)
    val: dict[int, float] = {}
    seen: dict[int, float] = {}
    evaluations = training.train(
        trial, job.config, job.store, job.split, job.source, device, job.max_failed_share, on_step
    )
    for number, evaluation in enumerate(evaluations, start=1):
        if evaluation.val_accuracy is not None:
            val[evaluation.step] = evaluation.val_accuracy
        if evaluation.seen_accuracy is not None:
            seen[evaluation.step] = evaluation.seen_accuracy
        progress = {
            "evaluation": number,
            "step": evaluation.step,
            "val_accuracy": evaluation.val_accuracy or 0.0,
            "val": dict(val),
            "seen": dict(seen),
            "seconds": evaluation.seconds,
            "unreadable": evaluation.unreadable,
            "report": meter.peek().plain(),
        }
        if number == len(job.config.evaluate_at):
            write_result(job.store, trial, trial_result(trial, "finished", progress))
            resume.delete(job.store, trial)
        report(progress)


def prepare_trial(trial: Trial, job: Job, meter: Meter) -> Report:
    """Write the checkpoint of a model that is evaluated without training."""
    with meter.piece():
        check_visible(job.store)
        training.prepare(trial, job.store, job.split)
    return meter.report


def ended_result(trial: Trial, last: Progress | None, job: Job, error: str | None = None) -> TrialResult:
    """Create the result of an ended trial from its last report.

    Args:
        last: None where the trial never reported.
        error: cause of failure; None if the trial didn't fail.
    """
    assert job.config is not None
    last = last or {}
    if error is not None:
        return trial_result(trial, "failed", last, error)
    return trial_result(trial, "finished" if last.get("evaluation") == len(job.config.evaluate_at) else "stopped", last)


def trial_result(trial: Trial, state: State, last: Progress, error: str | None = None) -> TrialResult:
    """Create a result from the history in the last report."""
    return TrialResult(
        model_id=trial.model.id,
        number=trial.number,
        seed=trial.seed,
        hyperparameters=trial.hyperparameters,
        state=state,
        val_accuracy=last.get("val", {}),
        seen_accuracy=last.get("seen", {}),
        seconds=last.get("seconds", 0.0),
        unreadable=last.get("unreadable", {}),
        error=error,
    )
