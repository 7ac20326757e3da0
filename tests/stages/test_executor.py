"""The two executors, and the functions on Ray behind one of them."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from raysep.config import FinetuneConfig, ModelConfig, SplitConfig
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split
from raysep.distributed.placement import Pool
from raysep.errors import StorageError
from raysep.finetune.run_trial import Job
from raysep.finetune.trials import Trial
from raysep.stages.executor import Executor, LocalExecutor, open_executor
from raysep.storage.store import Storage
from tests.conftest import TINY_CNN, write_images


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_functions_on_ray_take_what_the_protocol_hands_over() -> None:
    from raysep.distributed import connect, score, stream, tune

    pairs = [
        (tune.fit, Executor.fit),
        (tune.prepare_all, Executor.prepare_all),
        (stream.embed_all, Executor.embed_all),
        (score.score_all, Executor.score_all),
        (connect.connection, Executor.connect),
        (connect.missing_on_nodes, Executor.missing_on_nodes),
        (connect.gpu_memory, Executor.gpu_memory),
    ]
    for on_ray, protocol in pairs:
        assert parameters(on_ray) == parameters(protocol), on_ray.__name__


def test_executors_by_name() -> None:
    assert isinstance(open_executor("local"), LocalExecutor)
    assert open_executor("ray").name == "ray"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    write_images(tmp_path / "images", dict.fromkeys("abcd", 6))
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path / "images")))
    (tmp_path / "run").mkdir()
    split = draw_split(source.records(), SplitConfig(unseen=["c", "d"], test_fraction=0.5))
    config = FinetuneConfig(steps=4, batch_size=2)
    return Job(config, Storage(str(tmp_path / "run")), split, source, 0.0)


def trial(number: int, rate: float) -> Trial:
    return Trial(ModelConfig(**TINY_CNN), number, 0, {"learning_rate": rate, "weight_decay": 0.0})


def ignored(*_: Any) -> None:
    """A callback."""


def test_a_failed_trial_stops_no_other(job: Job) -> None:
    trials = [trial(0, 1e30), trial(1, 1e-3)]
    steps: list[tuple[int, int]] = []

    def on_report(trial: Trial, progress: dict[str, Any]) -> None:
        steps.append((trial.number, progress["step"]))

    results = LocalExecutor().fit(trials, job, Pool(1, 1, 0), on_report, ignored, False)
    assert [result.state for result in results] == ["failed", "finished"]
    assert "learning rate" in results[0].error
    assert (1, 4) in steps


def test_an_error_of_the_storage_concerns_all_trials(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Storage, target: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "_write", full)
    with pytest.raises(StorageError, match="No space left"):
        LocalExecutor().fit([trial(0, 1e-3)], job, Pool(1, 1, 0), ignored, ignored, False)
