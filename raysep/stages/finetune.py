"""The finetune stage: run the pending trials, and report the chosen hyperparameters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raysep.data import splits
from raysep.distributed import placement
from raysep.distributed.cluster_shape import Resources
from raysep.errors import StageError
from raysep.finetune.trials import Trial, TrialResult, choose, write_result
from raysep.stages import run_directory, worklist
from raysep.stages.context import RunContext
from raysep.storage.retries import Why
from raysep.telemetry.worker_stats import Report


def pending(run: RunContext) -> bool:
    """Whether a trial is pending."""
    trials, results = worklist.trials_of(run.store, run.config)
    return len(results) < len(trials)


def perform(run: RunContext, cluster: Resources) -> None:
    """Run the pending trials."""
    from raysep.finetune.run_trial import Job

    config, telemetry = run.config, run.telemetry
    trials, results = worklist.trials_of(run.store, config)
    pending = [trial for trial in trials if (trial.model.id, trial.number) not in results]
    job = Job(config.finetune, run.store, run.split, run.readers[splits.SEEN_TRAIN], config.data.max_failed_share)
    failed: list[TrialResult] = []

    def on_end(trial: Trial, result: TrialResult) -> None:
        where = f"{trial.model.id} trial {trial.number}"
        fields = {"model": trial.model.id, "trial": trial.number, "seed": trial.seed}
        if result.state == "failed":
            failed.append(result)
            telemetry.line("finetune", f"{where} failed: {result.error}", **fields)
        else:
            if result.state == "stopped" or not trial.hyperparameters:
                # The worker of a fully trained trial has already written its result.
                write_result(run.store, trial, result)
            telemetry.event("finetune", f"{where} {result.state} after {result.seconds:.1f} s", **fields)

    def on_retry(trial: Trial, why: Why) -> None:
        telemetry.retried("finetune", why)
        cause = "lost worker" if why == "process" else "transient storage error"
        text = f"retrying {trial.model.id} trial {trial.number}: {cause}"
        telemetry.line("finetune", text, model=trial.model.id, trial=trial.number)

    def train(trials: Sequence[Trial], job: Job) -> None:
        pool = placement.trial_pool(config.compute, cluster, len(trials))
        steps = sum(worklist.steps_of(config, trial)[-1] for trial in trials)
        reached = {(trial.model.id, trial.number): 0 for trial in trials}
        last: dict[tuple[str, int], Report] = {}
        with telemetry.stage("finetune", steps, "steps") as bar:

            def on_report(trial: Trial, report: dict[str, Any]) -> None:
                key = (trial.model.id, trial.number)
                rate = trial.hyperparameters.get("learning_rate")
                if "report" in report:
                    last[key] = Report(**report["report"])
                setting = f" lr {rate:g} seed {trial.seed}" if rate is not None else ""
                accuracy = f", validation accuracy {report['val_accuracy']:.3f}" if report.get("val") else ""
                bar.advance(report["step"] - reached[key], f"{trial.model.id}{setting} step {report['step']}{accuracy}")
                reached[key] = report["step"]

            results = run.executor.fit(trials, job, pool, on_report, on_retry, run.verbose)
            for trial, result in zip(trials, results, strict=True):
                if (report := last.get((trial.model.id, trial.number))) is not None:
                    telemetry.worked("finetune", report, trial.model.id)
                on_end(trial, result)

    def prepare(trials: Sequence[Trial]) -> None:
        with telemetry.stage("finetune", len(trials), "models") as bar:

            def on_prepared(trial: Trial, report: Report) -> None:
                bar.advance(1, f"{trial.model.id} without training")
                telemetry.worked("finetune", report, trial.model.id)

            pool = placement.prepare_pool(cluster, len(trials))
            results = run.executor.prepare_all(trials, job, pool, on_prepared, on_retry)
            for trial, result in zip(trials, results, strict=True):
                on_end(trial, result)

    to_train = [trial for trial in pending if trial.hyperparameters]
    if to_prepare := [trial for trial in pending if not trial.hyperparameters]:
        prepare(to_prepare)
    if to_train:
        train(to_train, job)
        # Train in full the trials of the chosen hyperparameters that ASHA stopped early in favour of another seed.
        _, results = worklist.trials_of(run.store, config)
        chosen = {(result.model_id, tuple(result.hyperparameters.items())) for result in choose(results.values())}
        stopped = [
            trial
            for trial in trials
            if (trial.model.id, tuple(trial.hyperparameters.items())) in chosen
            and (result := results.get((trial.model.id, trial.number)))
            and result.state == "stopped"
        ]
        if stopped and config.finetune is not None:
            train(stopped, replace(job, config=config.finetune.model_copy(update={"asha": None})))
    _, results = worklist.trials_of(run.store, config)
    best = choose(results.values())
    for model in config.models:
        chosen_trials = [result for result in best if result.model_id == model.id]
        if chosen_trials and config.finetune is not None:
            last = [trial.val_accuracy[max(trial.val_accuracy)] for trial in chosen_trials if trial.val_accuracy]
            setting = ", ".join(f"{name} {value:g}" for name, value in chosen_trials[0].hyperparameters.items())
            accuracy = sum(last) / max(1, len(last))
            telemetry.line("finetune", f"{model.id}: chose {setting}, validation accuracy {accuracy:.3f}")
    states = Counter[str](result.state for result in [*results.values(), *failed])
    telemetry.metrics.trials_ended(states)
    run_directory.record(
        run.store,
        "finetune",
        telemetry.node_work.get("finetune"),
        trials=len(trials),
        finished=sum(result.state == "finished" for result in results.values()),
        failed=[vars(result) for result in failed],
    )
    if not {result.model_id for result in best} & {model.id for model in config.models}:
        reasons = "; ".join(sorted({str(result.error) for result in failed})) or "no trial ended"
        raise StageError(f"finetune: no trial finished: {reasons}")
