"""Ray Tune around `training.train`: many trials, each a process with its share of the cluster."""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler

from raysep.config import FinetuneConfig
from raysep.data.sources import Reader
from raysep.distributed.connect import cause, lost_errors
from raysep.distributed.placement import Pool
from raysep.finetune.trials import State, Trial, TrialResult, write_result
from raysep.storage.retries import PIECE_RETRIES, Attempts, Why, may_pass
from raysep.storage.store import Storage, check_visible
from raysep.telemetry.worker_stats import Meter, Report

# A trial says where it is at most this often, evaluations aside.
REPORT_INTERVAL_S = 2.0
# Called for each report of a trial: trial, and what it reported.
OnReport = Callable[[Trial, dict[str, Any]], None]
OnRetry = Callable[[Trial, Why], None]


@dataclass(frozen=True)
class Job:
    """What all trials of a run have in common, except the model."""

    config: FinetuneConfig | None
    run: Storage
    split: pa.Table
    source: Reader
    max_failed_share: float


def sample(space: str, arguments: Any, seed: int) -> float:
    """One draw from a search space of Ray Tune, by its name there."""
    values = (arguments,) if space == "choice" else arguments
    domain = getattr(tune, space)(*values)
    return float(domain.sample(random_state=np.random.RandomState(seed)))


def fit(
    trials: Sequence[Trial],
    job: Job,
    pool: Pool,
    on_report: OnReport,
    verbose: bool = False,
    on_retry: OnRetry | None = None,
) -> list[TrialResult]:
    """Run trials under Ray Tune. One that loses its process goes on from the state that it kept last.

    With ASHA the trials of each model and each draw of unseen classes compete among themselves only: a model
    that learns slowly, or a harder choice of classes, must not be stopped because another learns fast.

    Returns:
        How each trial ended, in the order of `trials`. A trial that raised is `failed`, with its error; one that
        finished has written so itself.
    """
    asha = job.config.asha if job.config is not None else None
    if asha is None:
        return _fit_together(trials, job, pool, None, _Progress(trials, on_report, on_retry), verbose)
    assert job.config is not None
    results: dict[tuple[str, int], TrialResult] = {}
    for group in dict.fromkeys((trial.model.id, trial.rotation) for trial in trials):
        scheduler = ASHAScheduler(
            time_attr="evaluation",
            metric="val_accuracy",
            mode="max",
            max_t=len(job.config.evaluate_at),
            grace_period=min(asha.grace_evaluations, len(job.config.evaluate_at)),
            reduction_factor=asha.reduction_factor,
        )
        own = [trial for trial in trials if (trial.model.id, trial.rotation) == group]
        for result in _fit_together(own, job, pool, scheduler, _Progress(own, on_report, on_retry), verbose):
            results[result.model_id, result.number] = result
    return [results[trial.model.id, trial.number] for trial in trials]


def prepare_all(
    trials: Sequence[Trial], job: Job, on_prepared: Callable[[Trial, Report], None], on_retry: OnRetry | None = None
) -> list[TrialResult]:
    """Write the checkpoints of models that are evaluated as they are: a task each, since there is nothing to tune.

    Returns:
        How each ended, in the order of `trials`.
    """
    # Ray's own retries would not be counted.
    task = ray.remote(num_cpus=1, max_retries=0)(_prepare)
    attempts = Attempts()
    shared = ray.put((job.run, job.split))
    waiting = {task.remote(trial, shared): trial for trial in trials}
    results: dict[tuple[str, int], TrialResult] = {}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        trial = waiting.pop(done)
        seconds, error = 0.0, None
        try:
            report = ray.get(done)
            seconds = report.seconds
            on_prepared(trial, report)
        except RayError as failure:
            if isinstance(failure, lost_errors()) and attempts.begin((trial.model.id, trial.number)) <= PIECE_RETRIES:
                if on_retry is not None:
                    on_retry(trial, "process")
                waiting[task.remote(trial, shared)] = trial
                continue
            error = cause(failure)
        results[trial.model.id, trial.number] = TrialResult(
            model_id=trial.model.id,
            number=trial.number,
            seed=trial.seed,
            hyperparameters={},
            state="finished" if error is None else "failed",
            val_accuracy={},
            seen_accuracy={},
            seconds=seconds,
            unreadable={},
            error=error,
        )
    return [results[trial.model.id, trial.number] for trial in trials]


def _prepare(trial: Trial, shared: tuple[Storage, pa.Table]) -> Report:
    """In a worker."""
    from raysep.finetune.training import prepare

    meter = Meter(ray.util.get_node_ip_address())
    with meter.piece():
        check_visible(shared[0])
        prepare(trial, *shared)
    return meter.report


def _fit_together(
    trials: Sequence[Trial],
    job: Job,
    pool: Pool,
    scheduler: ASHAScheduler | None,
    progress: "_Progress",
    verbose: bool,
) -> list[TrialResult]:
    if not verbose:
        # Tune warns about its own defaults; a failed trial is reported by us, with its error.
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    trainable = tune.with_resources(
        tune.with_parameters(_trainable, job=job, threads=pool.threads, use_gpu=pool.gpus > 0),
        {"cpu": pool.cpus, "gpu": pool.gpus},
    )
    with tempfile.TemporaryDirectory(prefix="raysep-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space={
                "trial": tune.grid_search(list(range(len(trials)))),
                "trials": ray.put(list(trials)),
            },
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                reuse_actors=True,
                trial_name_creator=lambda t: f"trial-{t.config['trial']}",
                trial_dirname_creator=lambda t: f"trial-{t.config['trial']}",
            ),
            run_config=tune.RunConfig(
                # The checkpoints are ours; Tune keeps no more than its own notes.
                storage_path=scratch,
                verbose=1 if verbose else 0,
                callbacks=[progress],
                # Where it loses its process or its storage; what it raises itself would come again.
                failure_config=tune.FailureConfig(max_failures=PIECE_RETRIES),
            ),
        )
        grid = tuner.fit()
        # One whose process never came up has no configuration; results come in the order of the grid.
        found = {(grid[at].config or {}).get("trial", at): grid[at] for at in range(len(grid))}
    return [_result(trial, found.get(index), job) for index, trial in enumerate(trials)]


def _trainable(config: dict[str, Any], job: Job, threads: int, use_gpu: bool) -> None:
    """In the trial's process. Keeps a history, since Tune gives back the last report only."""
    import torch

    from raysep.finetune import resume
    from raysep.finetune.training import train

    # Ray sets OMP_NUM_THREADS to 1 for processes of one CPU; this process may use what it asked for.
    torch.set_num_threads(threads)
    trial: Trial = ray.get(config["trials"])[config["trial"]]
    assert job.config is not None
    check_visible(job.run)
    meter = Meter(ray.util.get_node_ip_address())
    last: dict[str, Any] = {}
    said = time.monotonic()

    def on_step(step: int) -> None:
        # Between evaluations a trial only says that it lives. To a scheduler that is the last evaluation again.
        nonlocal said
        if last and time.monotonic() - said > REPORT_INTERVAL_S:
            said = time.monotonic()
            tune.report({**last, "step": step})

    device = "cuda" if use_gpu else "cpu"
    evaluations = train(trial, job.config, job.run, job.split, job.source, device, job.max_failed_share, on_step)
    val: dict[int, float] = {}
    seen: dict[int, float] = {}
    try:
        for number, evaluation in enumerate(evaluations, start=1):
            if evaluation.val_accuracy is not None:
                val[evaluation.step] = evaluation.val_accuracy
            if evaluation.seen_accuracy is not None:
                seen[evaluation.step] = evaluation.seen_accuracy
            last = {
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
                # Before anybody else knows of it: whoever is lost from here on, this trial has ended.
                write_result(job.run, trial, _ended(trial, "finished", last))
                resume.forget(job.run, trial)
            tune.report(last)
    except Exception as error:
        now = {"evaluation": 0, "step": 0, "val_accuracy": 0.0, **last}
        # Storage that doesn't answer may answer later: for Tune to try again.
        if may_pass(error):
            tune.report({**now, "away": True})
            raise
        # What a trial raises itself would come again: reported, so that Tune doesn't begin it again.
        tune.report({**now, "refused": cause(error)})


def _result(trial: Trial, result: Any, job: Job) -> TrialResult:
    last = (result.metrics or {}) if result is not None else {}
    assert job.config is not None
    if result is None or result.error is not None:
        return _ended(trial, "failed", last, cause(result.error if result is not None else None))
    if "refused" in last:
        return _ended(trial, "failed", last, last["refused"])
    return _ended(trial, "finished" if last.get("evaluation", 0) == len(job.config.evaluate_at) else "stopped", last)


def _ended(trial: Trial, state: State, last: dict[str, Any], error: str | None = None) -> TrialResult:
    """How a trial ended, by its last report."""
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


class _Progress(tune.Callback):
    """Hands each report to the caller. Lives on the driver."""

    def __init__(self, trials: Sequence[Trial], on_report: OnReport, on_retry: OnRetry | None) -> None:
        self._trials, self._on_report, self._on_retry = list(trials), on_report, on_retry

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore that we don't use; a terminal can't be pickled.
        return {"_trials": [], "_on_report": None, "_on_retry": None}

    def on_trial_recover(  # Tune's own signature
        self,
        iteration: int,  # noqa: ARG002
        trials: Any,  # noqa: ARG002
        trial: Any,
        **info: Any,  # noqa: ARG002
    ) -> None:
        if self._on_retry is not None:
            why: Why = "storage" if (trial.last_result or {}).get("away") else "process"
            self._on_retry(self._trials[trial.config["trial"]], why)

    def on_trial_result(  # Tune's own signature
        self,
        iteration: int,  # noqa: ARG002
        trials: Any,  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        self._on_report(self._trials[trial.config["trial"]], result)
