"""The executors that stages run on: Ray (`distributed.executor`), or this process."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from raysep.config import EmbedConfig, ScoreConfig
from raysep.distributed import limits
from raysep.distributed.cluster_shape import Resources, Shape
from raysep.distributed.connect import cause
from raysep.distributed.placement import EmbedPlan, Pool
from raysep.finetune.trials import State, Trial, TrialResult
from raysep.process.environment import torch_device
from raysep.scoring.table import Task
from raysep.storage.retries import Why
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter, Report

if TYPE_CHECKING:
    from raysep.embedding.work import BlockResult, WorkGroup
    from raysep.finetune.run_trial import Job, Progress
    from raysep.scoring.worker import Scored

Kind = Literal["ray", "local"]
OnRetry = Callable[[Trial, Why], None]


class Executor(Protocol):
    """Runs trials, blocks and scoring tasks. Yields results in any order, unless stated otherwise.

    Attributes:
        name: name in the log.
    """

    name: ClassVar[str]

    def check(self) -> None:
        """Raise UsageError for environment settings that the executor can't use, before any work."""

    def connect(self, verbose: bool, may_add: Sequence[Shape]) -> AbstractContextManager[Resources]:
        """Connect to the resources to plan with, for the duration of a `with` block.

        Args:
            may_add: shapes of the nodes that an autoscaler may add.
        """

    def missing_on_nodes(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """Local paths that a node lacks, by node address."""

    def gpu_memory(self) -> int | None:
        """Memory of the smallest GPU in bytes; None if unknown."""

    def fit(
        self,
        trials: Sequence[Trial],
        job: "Job",
        pool: Pool,
        on_report: Callable[[Trial, "Progress"], None],
        on_retry: OnRetry,
        verbose: bool,
    ) -> list[TrialResult]:
        """Train trials; results in the order of the trials."""

    def prepare_all(
        self,
        trials: Sequence[Trial],
        job: "Job",
        pool: Pool,
        on_prepared: Callable[[Trial, Report], None],
        on_retry: OnRetry,
    ) -> list[TrialResult]:
        """Write the checkpoints of trials without training; results in the order of the trials."""

    def embed_all(
        self,
        groups: Sequence["WorkGroup"],
        store: Storage,
        config: EmbedConfig,
        plan: EmbedPlan,
        verbose: bool,
        done: Sequence[Container[int]],
    ) -> Iterator["BlockResult"]:
        """Embed the blocks of all groups, except each group's own in `done`."""

    def score_all(
        self, store: Storage, config: ScoreConfig, tasks: Sequence[Task], pool: Pool, on_retry: Callable[[Task], None]
    ) -> Iterator["Scored"]:
        """Score tasks."""


class LocalExecutor:
    """Runs all work sequentially in this process: no Ray, no start-up time, no retries."""

    name: ClassVar[str] = "local"

    def check(self) -> None:
        """Check nothing: it uses no settings of the environment."""

    def connect(self, verbose: bool, may_add: Sequence[Shape]) -> AbstractContextManager[Resources]:  # noqa: ARG002
        """One node with the CPUs that this process may use."""
        cpus = limits.cpus()
        return nullcontext(Resources(((float(cpus), 0.0),), kinds=(f"{cpus} CPUs",)))

    def missing_on_nodes(self, paths: Sequence[str]) -> dict[str, list[str]]:  # noqa: ARG002
        """An empty dict: there is one node."""
        return {}

    def gpu_memory(self) -> int | None:
        """None: the local executor plans with CPUs only."""
        return None

    def fit(
        self,
        trials: Sequence[Trial],
        job: "Job",
        pool: Pool,  # noqa: ARG002
        on_report: Callable[[Trial, "Progress"], None],
        on_retry: OnRetry,  # noqa: ARG002
        verbose: bool,  # noqa: ARG002
    ) -> list[TrialResult]:
        """Train trials sequentially and in full: early stopping (ASHA) needs parallel trials."""
        from raysep.finetune.run_trial import ended_result, run_trial

        results = []
        for trial in trials:
            reports: list[Progress] = []

            def report(progress: "Progress", trial: Trial = trial, reports: "list[Progress]" = reports) -> None:
                reports.append(progress)
                on_report(trial, progress)

            with _failure() as failure:
                run_trial(trial, job, torch_device(), Meter(self.name), report)
            results.append(ended_result(trial, reports[-1] if reports else None, job, failure.get("error")))
        return results

    def prepare_all(
        self,
        trials: Sequence[Trial],
        job: "Job",
        pool: Pool,  # noqa: ARG002
        on_prepared: Callable[[Trial, Report], None],
        on_retry: OnRetry,  # noqa: ARG002
    ) -> list[TrialResult]:
        """Write the checkpoints in order."""
        from raysep.finetune.run_trial import prepare_trial, trial_result

        meter, results = Meter(self.name), []
        for trial in trials:
            with _failure() as failure:
                on_prepared(trial, prepare_trial(trial, job, meter))
            state: State = "failed" if failure else "finished"
            results.append(trial_result(trial, state, {"seconds": meter.report.seconds}, failure.get("error")))
        return results

    def embed_all(
        self,
        groups: Sequence["WorkGroup"],
        store: Storage,
        config: EmbedConfig,
        plan: EmbedPlan,  # noqa: ARG002
        verbose: bool,  # noqa: ARG002
        done: Sequence[Container[int]],
    ) -> Iterator["BlockResult"]:
        """Embed the blocks in order."""
        from raysep.embedding.blocks import Embedding
        from raysep.embedding.work import references

        embedding = Embedding([group.reader for group in groups], store, config, torch_device(), Meter(self.name))
        for index, group in enumerate(groups):
            for block in references(index, group, index, config.shard_rows, done[index]):
                yield embedding.embed(block)

    def score_all(
        self,
        store: Storage,
        config: ScoreConfig,
        tasks: Sequence[Task],
        pool: Pool,  # noqa: ARG002
        on_retry: Callable[[Task], None],  # noqa: ARG002
    ) -> Iterator["Scored"]:
        """Score the tasks in order."""
        from raysep.scoring.worker import Scorer

        score = Scorer(store, config, Meter(self.name))
        for task in tasks:
            yield task, *score(task)


@contextmanager
def _failure() -> Iterator[dict[str, str]]:
    """Catch and record the error of a trial, so that others continue. Raise storage errors, which affect all trials."""
    failure: dict[str, str] = {}
    try:
        yield failure
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  (models raise anything; the trial is reported as failed)
        failure["error"] = cause(error)


def open_executor(kind: Kind) -> Executor:
    """Open the executor of a kind. Ray is imported only for `ray`."""
    if kind == "local":
        return LocalExecutor()
    from raysep.distributed.executor import RayExecutor

    return RayExecutor()
