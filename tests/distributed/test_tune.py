from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysep.config import FinetuneConfig, ModelConfig, SplitConfig
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split
from raysep.distributed.placement import Pool
from raysep.distributed.tune import fit, prepare_all, sample
from raysep.finetune.run_trial import Job
from raysep.finetune.training import prepare, train
from raysep.finetune.trials import Trial, read_result
from raysep.models.meta import read_meta
from raysep.storage.store import Storage
from tests.conftest import TINY_CNN, Deadly


def ignored(*_: object) -> None:
    """A callback that does nothing."""


CONFIG = FinetuneConfig(steps=4, evaluate_at=[0, 2, 4], batch_size=8, validation_fraction=0.2)


def trials(*rates: float) -> list[Trial]:
    return [
        Trial(ModelConfig(**TINY_CNN), number, 0, {"learning_rate": rate, "weight_decay": 0.0})
        for number, rate in enumerate(rates)
    ]


@pytest.fixture
def job(tree: Path, tmp_path: Path) -> Job:
    source = ImageFolder(ImageFolder.Config(path=str(tree)))
    split = draw_split(source.records(), SplitConfig(unseen=["d", "e"]))
    # A node that lacks the run directory refuses to train.
    (tmp_path / "run").mkdir()
    return Job(CONFIG, Storage(str(tmp_path / "run")), split, source, 0.01)


@pytest.mark.parametrize(
    ("space", "arguments"),
    [("uniform", (1, 2)), ("loguniform", (1, 2)), ("quniform", (1, 2, 0.5)), ("choice", [1.0, 1.5])],
)
def test_draws_are_ray_tunes_and_depend_on_the_seed_only(space: str, arguments: Any) -> None:
    drawn = [sample(space, arguments, seed) for seed in range(5)]
    assert drawn == [sample(space, arguments, seed) for seed in range(5)]
    assert all(1 <= value <= 2 for value in drawn)
    assert len(set(drawn)) > 1


def test_trials_under_tune_equal_trials_alone(ray_session: None, job: Job, tmp_path: Path) -> None:
    seen = []
    results = fit(
        trials(1e-3, 1e-2),
        job,
        Pool(2, 1, 0),
        lambda trial, report: seen.append((trial.number, report["step"])),
        ignored,
    )
    assert [result.state for result in results] == ["finished", "finished"]
    assert sorted(seen) == [(number, step) for number in (0, 1) for step in (0, 2, 4)]
    alone = Storage(str(tmp_path / "alone"))
    for trial, result in zip(trials(1e-3, 1e-2), results, strict=True):
        evaluations = list(train(trial, CONFIG, alone, job.split, job.source))
        assert result.val_accuracy == {e.step: e.val_accuracy for e in evaluations}
        assert result.seen_accuracy == {e.step: e.seen_accuracy for e in evaluations}
        where = f"{trial.directory}/step=4"
        assert read_meta(job.store, where).hyperparameters == read_meta(alone, where).hyperparameters


def test_a_failed_trial_reports_its_error_and_stops_no_other(ray_session: None, job: Job) -> None:
    results = fit(trials(1e30, 1e-3), job, Pool(2, 1, 0), ignored, ignored)
    assert [result.state for result in results] == ["failed", "finished"]
    assert "smaller learning rate" in (results[0].error or "")


class Away(Deadly):
    """An image source whose first read fails with a transient error."""

    def lose(self) -> None:
        raise TimeoutError("no answer")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "why"), [(Deadly, "process"), (Away, "storage")])
def test_trials_are_retried_after_a_lost_worker_or_a_transient_storage_error(
    ray_session: None, job: Job, tree: Path, tmp_path: Path, kind: type[Deadly], why: str
) -> None:
    deadly, again = replace(job, source=kind(str(tree), str(tmp_path / "marker"))), []
    (result,) = fit(trials(1e-3), deadly, Pool(1, 1, 0), ignored, lambda trial, why: again.append(why))
    assert (result.state, again) == ("finished", [why])
    assert read_result(job.store, trials(1e-3)[0], CONFIG.evaluate_at) == result
    alone = list(train(trials(1e-3)[0], CONFIG, Storage(str(tmp_path / "alone")), job.split, job.source))
    assert result.val_accuracy == {e.step: e.val_accuracy for e in alone}


@pytest.mark.slow
def test_asha_stops_the_worse_half_and_never_all(ray_session: None, job: Job) -> None:
    # Enough steps for one learning rate to learn; the others are too small to.
    halving = {
        "steps": 24,
        "evaluate_at": [0, 6, 12, 18, 24],
        "validation_fraction": 0.4,
        "asha": {"grace_evaluations": 1, "reduction_factor": 2},
    }
    config = FinetuneConfig.model_validate({**CONFIG.model_dump(), **halving})
    asha = Job(config, job.store, job.split, job.source, 0.01)
    results = fit(trials(3e-3, 1e-9, 1e-9, 1e-9), asha, Pool(1, 2, 0), ignored, ignored)
    states = [result.state for result in results]
    assert states[0] == "finished"
    assert "stopped" in states
    for result in results:
        assert (24 in result.val_accuracy) == (result.state == "finished")


def test_models_are_evaluated_without_training(ray_session: None, job: Job, tmp_path: Path) -> None:
    plain = Job(None, job.store, job.split, job.source, 0.01)
    trial = Trial(ModelConfig(**TINY_CNN), 0, 0)
    reported = []
    missing = Trial(ModelConfig(**{**TINY_CNN, "id": "m", "pretrained": "gone.safetensors"}), 0, 0)
    results = prepare_all(
        [trial, missing],
        plain,
        Pool(1, 1, 0),
        lambda trial, report: reported.append((trial.model.id, report)),
        ignored,
    )
    assert [result.state for result in results] == ["finished", "failed"]
    assert "gone.safetensors" in (results[1].error or "")
    assert [name for name, _ in reported] == ["test_resnet"]
    assert reported[0][1].seconds > 0
    alone = Storage(str(tmp_path / "alone"))
    prepare(trial, alone, job.split)
    where = "checkpoints/test_resnet/trial=0/step=0"
    assert read_meta(job.store, where) == read_meta(alone, where)
