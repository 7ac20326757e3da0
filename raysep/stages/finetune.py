"""The finetune stage: run the pending trials, and report the chosen hyperparameters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raysep.data import splits
from raysep.distributed import placement
from raysep.distributed.cluster_shape import Resources
from raysep.errors import StageError
from raysep.finetune.trials import Trial, TrialResult, choose, write_result
from raysep.stages import run_directory, worklist
from raysep.stages.context import RunContext
from raysep.storage.retries import Why
from raysep.telemetry.worker_stats import Report

if TYPE_CHECKING:
    from raysep.finetune.run_trial import Job


def pending(run: RunContext) -> bool:
    """Whether a trial is pending."""
    trials, results = worklist.trials_of(run.store, run.config)
    return len(results) < len(trials)


def perform(run: RunContext, cluster: Resources) -> None:
    """Run the pending trials."""
    from raysep.finetune.run_trial import Job

    config = run.config
    trials, results = worklist.trials_of(run.store, config)
    pending = [trial for trial in trials if _key(trial) not in results]
    job = Job(config.finetune, run.store, run.split, run.readers[splits.SEEN_TRAIN], config.data.max_failed_share)
    work = _Trials(run, cluster, job)
    if to_prepare := [trial for trial in pending if not trial.hyperparameters]:
        work.prepare(to_prepare)
    if to_train := [trial for trial in pending if trial.hyperparameters]:
        work.train(to_train)
        work.train_in_full(trials)
    _, results = worklist.trials_of(run.store, config)
    best = choose(results.values())
    _report_choice(run, best)
    run.telemetry.metrics.trials_ended(Counter[str](result.state for result in [*results.values(), *work.failed]))
    run_directory.record(
        run.store,
        "finetune",
        run.telemetry.node_work.get("finetune"),
        trials=len(trials),
        finished=sum(result.state == "finished" for result in results.values()),
        failed=[vars(result) for result in work.failed],
    )
    if not {result.model_id for result in best} & {model.id for model in config.models}:
        reasons = "; ".join(sorted({str(result.error) for result in work.failed})) or "no trial ended"
        raise StageError(f"finetune: no trial finished: {reasons}")


class _Trials:
    """Runs trials on the executor of a run, and logs them.

    Attributes:
        failed: results of failed trials.
    """

    def __init__(self, run: RunContext, cluster: Resources, job: "Job") -> None:
        self._run, self._cluster, self._job = run, cluster, job
        self.failed: list[TrialResult] = []

    def train(self, trials: Sequence[Trial], job: "Job | None" = None) -> None:
        """Train trials by `job`, or by the run's own training function if None."""
        run, config = self._run, self._run.config
        pool = placement.trial_pool(config.compute, self._cluster, len(trials))
        steps = sum(worklist.steps_of(config, trial)[-1] for trial in trials)
        reached = {_key(trial): 0 for trial in trials}
        reports: dict[tuple[str, int], Report] = {}
        with run.telemetry.stage("finetune", steps, "steps") as bar:

            def on_report(trial: Trial, progress: dict[str, Any]) -> None:
                if "report" in progress:
                    reports[_key(trial)] = Report(**progress["report"])
                bar.advance(progress["step"] - reached[_key(trial)], _progress_text(trial, progress))
                reached[_key(trial)] = progress["step"]

            results = run.executor.fit(trials, job or self._job, pool, on_report, self._on_retry, run.verbose)
        for trial, result in zip(trials, results, strict=True):
            if (report := reports.get(_key(trial))) is not None:
                run.telemetry.worked("finetune", report, trial.model.id)
            self._on_end(trial, result)

    def train_in_full(self, trials: Sequence[Trial]) -> None:
        """Train the trials with the chosen hyperparameters in full, where ASHA stopped their trial of another seed."""
        _, results = worklist.trials_of(self._run.store, self._run.config)
        chosen = {(result.model_id, tuple(result.hyperparameters.items())) for result in choose(results.values())}
        stopped = [
            trial
            for trial in trials
            if (trial.model.id, tuple(trial.hyperparameters.items())) in chosen
            and (result := results.get(_key(trial)))
            and result.state == "stopped"
        ]
        if stopped and self._job.config is not None:
            self.train(stopped, replace(self._job, config=self._job.config.model_copy(update={"asha": None})))

    def prepare(self, trials: Sequence[Trial]) -> None:
        """Write the checkpoints of models that are evaluated as they are."""
        telemetry = self._run.telemetry
        pool = placement.prepare_pool(self._cluster, len(trials))
        with telemetry.stage("finetune", len(trials), "models") as bar:

            def on_prepared(trial: Trial, report: Report) -> None:
                bar.advance(1, f"{trial.model.id} without training")
                telemetry.worked("finetune", report, trial.model.id)

            results = self._run.executor.prepare_all(trials, self._job, pool, on_prepared, self._on_retry)
        for trial, result in zip(trials, results, strict=True):
            self._on_end(trial, result)

    def _on_end(self, trial: Trial, result: TrialResult) -> None:
        where, telemetry = f"{trial.model.id} trial {trial.number}", self._run.telemetry
        fields = {"model": trial.model.id, "trial": trial.number, "seed": trial.seed}
        if result.state == "failed":
            self.failed.append(result)
            telemetry.line("finetune", f"{where} failed: {result.error}", **fields)
            return
        if result.state == "stopped" or not trial.hyperparameters:
            # The worker of a fully trained trial has already written its result.
            write_result(self._run.store, trial, result)
        telemetry.event("finetune", f"{where} {result.state} after {result.seconds:.1f} s", **fields)

    def _on_retry(self, trial: Trial, why: Why) -> None:
        self._run.telemetry.retried("finetune", why)
        cause = "lost worker" if why == "process" else "transient storage error"
        text = f"retrying {trial.model.id} trial {trial.number}: {cause}"
        self._run.telemetry.line("finetune", text, model=trial.model.id, trial=trial.number)


def _key(trial: Trial) -> tuple[str, int]:
    return trial.model.id, trial.number


def _progress_text(trial: Trial, progress: dict[str, Any]) -> str:
    rate = trial.hyperparameters.get("learning_rate")
    setting = f" lr {rate:g} seed {trial.seed}" if rate is not None else ""
    accuracy = f", validation accuracy {progress['val_accuracy']:.3f}" if progress.get("val") else ""
    return f"{trial.model.id}{setting} step {progress['step']}{accuracy}"


def _report_choice(run: RunContext, best: Sequence[TrialResult]) -> None:
    """Log the chosen hyperparameters of each model."""
    for model in run.config.models:
        trials = [result for result in best if result.model_id == model.id]
        if trials and run.config.finetune is not None:
            last = [trial.val_accuracy[max(trial.val_accuracy)] for trial in trials if trial.val_accuracy]
            setting = ", ".join(f"{name} {value:g}" for name, value in trials[0].hyperparameters.items())
            accuracy = sum(last) / max(1, len(last))
            run.telemetry.line("finetune", f"{model.id}: chose {setting}, validation accuracy {accuracy:.3f}")
