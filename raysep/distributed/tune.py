"""Run trials (`finetune.run_trial`) under Ray Tune, each in its own process with a share of the cluster."""

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from raysep.distributed.connect import cause
from raysep.distributed.placement import Pool
from raysep.distributed.pool import run_tasks
from raysep.finetune.run_trial import Job, Progress, ended_result, prepare_trial, run_trial, trial_result
from raysep.finetune.trials import State, Trial, TrialResult
from raysep.storage.retries import WORKER_RETRIES, Why, is_transient
from raysep.telemetry.worker_stats import Meter, Report

# Minimum interval of the heartbeats, with its step, that a trial reports between evaluations.
REPORT_INTERVAL_S = 2.0
OnReport = Callable[[Trial, Progress], None]
OnRetry = Callable[[Trial, Why], None]


def sample(space: str, arguments: Any, seed: int) -> float:
    """Draw from a search space of Ray Tune, given by its name in `ray.tune`."""
    values = (arguments,) if space == "choice" else arguments
    domain = getattr(tune, space)(*values)
    return float(domain.sample(random_state=np.random.RandomState(seed)))


def fit(
    trials: Sequence[Trial], job: Job, pool: Pool, on_report: OnReport, on_retry: OnRetry, verbose: bool = False
) -> list[TrialResult]:
    """Run trials under Ray Tune. A trial that loses its worker resumes from its last training checkpoint.

    With ASHA only trials of the same model and the same draw of unseen classes compete: a model that learns slowly, or
    a harder draw of classes, must not be stopped because another learns fast.

    Returns:
        The result of each trial, in the order of `trials`. A trial that raised is `failed`, with its error; the worker
        of a finished trial has already written its result.
    """
    asha = job.config.asha if job.config is not None else None
    if asha is None:
        return _fit_group(trials, job, pool, None, _Callback(trials, on_report, on_retry), verbose)
    assert job.config is not None
    results: dict[tuple[str, int], TrialResult] = {}
    for key in dict.fromkeys((trial.model.id, trial.rotation) for trial in trials):
        scheduler = ASHAScheduler(
            time_attr="evaluation",
            metric="val_accuracy",
            mode="max",
            max_t=len(job.config.evaluate_at),
            grace_period=min(asha.grace_evaluations, len(job.config.evaluate_at)),
            reduction_factor=asha.reduction_factor,
        )
        group = [trial for trial in trials if (trial.model.id, trial.rotation) == key]
        for result in _fit_group(group, job, pool, scheduler, _Callback(group, on_report, on_retry), verbose):
            results[result.model_id, result.number] = result
    return [results[trial.model.id, trial.number] for trial in trials]


def prepare_all(
    trials: Sequence[Trial], job: Job, pool: Pool, on_prepared: Callable[[Trial, Report], None], on_retry: OnRetry
) -> list[TrialResult]:
    """Write the checkpoints of models that are evaluated without training, on an actor pool.

    Returns:
        The result of each trial, in the order of `trials`.
    """
    shared = ray.put(job)
    results: dict[tuple[str, int], TrialResult] = {}
    for done in run_tasks(
        trials,
        lambda _: lambda: _preparer(shared),
        pool.processes,
        {"num_cpus": pool.cpus},
        name="Preparer",
        on_retry=lambda trial: on_retry(trial, "process"),
    ):
        seconds = 0.0
        if done.result is not None:
            seconds = done.result.seconds
            on_prepared(done.task, done.result)
        state: State = "finished" if done.error is None else "failed"
        key = done.task.model.id, done.task.number
        results[key] = trial_result(done.task, state, {"seconds": seconds}, done.error)
    return [results[trial.model.id, trial.number] for trial in trials]


def _preparer(shared: Any) -> Callable[[Trial], Report]:
    """Create the function of a `Preparer` actor."""
    job, meter = ray.get(shared), Meter(ray.util.get_node_ip_address())
    return lambda trial: prepare_trial(trial, job, meter)


def _fit_group(
    trials: Sequence[Trial],
    job: Job,
    pool: Pool,
    scheduler: ASHAScheduler | None,
    callback: "_Callback",
    verbose: bool,
) -> list[TrialResult]:
    if not verbose:
        # Tune warns about its own defaults; raysep reports failed trials itself.
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
                # Checkpoints go to the run directory; Tune keeps its own state here.
                storage_path=scratch,
                verbose=1 if verbose else 0,
                callbacks=[callback],
                # For lost workers and transient storage errors; a trial reports other errors without raising them.
                failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
            ),
        )
        grid = tuner.fit()
        # A trial whose worker never started has no configuration; its position in the grid is its number.
        results = {(grid[at].config or {}).get("trial", at): grid[at] for at in range(len(grid))}
    return [_result(trial, results.get(index), job) for index, trial in enumerate(trials)]


def _trainable(config: dict[str, Any], job: Job, threads: int, use_gpu: bool) -> None:
    """Run a trial in its worker process, and report to Tune."""
    import torch

    # Override Ray's OMP_NUM_THREADS with the number of CPUs of this process.
    torch.set_num_threads(threads)
    trial: Trial = ray.get(config["trials"])[config["trial"]]
    last: Progress = {}
    reported = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal reported
        last.update(progress)
        reported = time.monotonic()
        tune.report(progress)

    def on_step(step: int) -> None:
        # A scheduler sees the last evaluation once more.
        if last and time.monotonic() - reported > REPORT_INTERVAL_S:
            report({**last, "step": step})

    meter = Meter(ray.util.get_node_ip_address())
    try:
        run_trial(trial, job, "cuda" if use_gpu else "cpu", meter, report, on_step)
    except Exception as error:
        progress = {"evaluation": 0, "step": 0, "val_accuracy": 0.0, **last}
        if is_transient(error):
            # Raise, so that Tune retries the trial.
            tune.report({**progress, "storage_lost": True})
            raise
        # The trial's own error would recur in a retry: report it without raising.
        tune.report({**progress, "refused": cause(error)})


def _result(trial: Trial, result: Any, job: Job) -> TrialResult:
    if result is None or result.error is not None:
        lost = cause(result.error if result is not None else None)
        return ended_result(trial, result.metrics if result is not None else None, job, lost)
    return ended_result(trial, result.metrics, job, result.metrics.get("refused"))


class _Callback(tune.Callback):
    """Passes Tune's events to the caller, on the driver."""

    def __init__(self, trials: Sequence[Trial], on_report: OnReport, on_retry: OnRetry) -> None:
        self._trials, self._on_report, self._on_retry = list(trials), on_report, on_retry

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for a restore, which raysep doesn't use; a terminal can't be pickled.
        return {"_trials": [], "_on_report": None, "_on_retry": None}

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
        why: Why = "storage" if (trial.last_result or {}).get("storage_lost") else "process"
        self._on_retry(self._trials[trial.config["trial"]], why)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Progress, **info: Any) -> None:  # noqa: ARG002
        self._on_report(self._trials[trial.config["trial"]], result)
