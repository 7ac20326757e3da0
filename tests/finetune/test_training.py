import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysep.config import FinetuneConfig, ModelConfig, SplitConfig
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split
from raysep.errors import StageError
from raysep.finetune import images
from raysep.finetune.training import autocast_dtype, prepare, rate_factor, train
from raysep.finetune.trials import Trial
from raysep.models.checkpoints import load_checkpoint
from raysep.models.meta import read_meta
from raysep.storage.store import Storage
from tests.conftest import TINY_CNN

CONFIG = FinetuneConfig(steps=12, evaluate_at=[0, 6, 12], batch_size=8, validation_fraction=0.2)


def trial(rate: float = 3e-3, seed: int = 0) -> Trial:
    return Trial(ModelConfig(**TINY_CNN), 0, seed, {"learning_rate": rate, "weight_decay": 0.01})


@pytest.fixture
def world(tree: Path, tmp_path: Path) -> Any:
    source = ImageFolder(ImageFolder.Config(path=str(tree)))
    return Storage(str(tmp_path / "run")), draw_split(source.records(), SplitConfig(unseen=["d", "e"])), source


def test_a_trial_learns_and_saves_a_checkpoint_at_each_evaluation(world: Any) -> None:
    store, split, source = world
    evaluations = list(train(trial(), CONFIG, store, split, source))
    assert [e.step for e in evaluations] == [0, 6, 12]
    assert evaluations[0].loss is None
    assert evaluations[2].loss < evaluations[1].loss
    assert evaluations[2].seen_accuracy > 0.8
    for evaluation in evaluations:
        meta = read_meta(store, f"checkpoints/test_resnet/trial=0/step={evaluation.step}")
        assert (meta.val_accuracy, meta.seen_accuracy) == (evaluation.val_accuracy, evaluation.seen_accuracy)
        assert meta.classes == ["a", "b", "c"]
    first, last = (
        load_checkpoint(store, read_meta(store, f"{trial().directory}/step={step}")).state_dict() for step in (0, 12)
    )
    assert any(not torch.equal(first[key], last[key]) for key in first)


def test_seeds_determine_the_weights(world: Any, tmp_path: Path) -> None:
    _, split, source = world

    def weights(seed: int, name: str) -> str:
        store = Storage(str(tmp_path / name))
        list(train(trial(seed=seed), CONFIG, store, split, source))
        return read_meta(store, "checkpoints/test_resnet/trial=0/step=12").sha256

    assert weights(1, "x") == weights(1, "y") != weights(2, "z")


def test_a_model_may_be_evaluated_without_training(world: Any) -> None:
    store, split, _ = world
    prepare(Trial(ModelConfig(**TINY_CNN), 0, 0), store, split)
    meta = read_meta(store, "checkpoints/test_resnet/trial=0/step=0")
    assert meta.seen_accuracy is None


def test_a_nonfinite_loss_raises_an_error_with_advice(world: Any) -> None:
    store, split, source = world
    with pytest.raises(StageError, match=r"loss is nan .*smaller learning rate"):
        list(train(trial(rate=1e30), CONFIG, store, split, source))


def test_unreadable_images_are_skipped_counted_and_limited(world: Any, tree: Path) -> None:
    store, split, source = world
    (tree / "a" / "000.png").write_bytes(b"broken")
    *_, last = train(trial(), CONFIG, store, split, source, max_failed_share=0.1)
    assert list(last.unreadable) == ["a/000.png"]
    with pytest.raises(StageError, match=r"1 of 36 images can't be read.*a/000.png"):
        list(train(trial(), CONFIG, store, split, source, max_failed_share=0.01))


def test_images_are_the_same_with_and_without_the_cache(
    world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, split, source = world
    accuracies = []
    for limit in (2**31, 0):
        monkeypatch.setattr(images, "CACHE_BYTES", limit)
        accuracies.append([e.loss for e in train(trial(), CONFIG, Storage(str(tmp_path / str(limit))), split, source)])
    assert accuracies[0] == accuracies[1]


def test_warm_up_is_linear_and_the_cosine_ends_at_zero() -> None:
    config = FinetuneConfig(steps=110, warmup_steps=10, schedule="cosine")
    assert [rate_factor(step, config) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert rate_factor(10, config) == 1.0
    assert rate_factor(60, config) == pytest.approx(0.5)
    assert rate_factor(110, config) == pytest.approx(0, abs=1e-12)
    assert rate_factor(99, FinetuneConfig(steps=110)) == 1.0


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 120))
def test_the_rate_factor_is_between_0_and_1(steps: int, warmup: int, step: int) -> None:
    factor = rate_factor(step, FinetuneConfig(steps=steps, warmup_steps=warmup, schedule="cosine"))
    assert 0 <= factor <= 1
    assert math.isfinite(factor)


def test_precision() -> None:
    assert autocast_dtype("auto", "cpu") is autocast_dtype("float32", "cuda") is None
    assert autocast_dtype("bfloat16", "cpu") is torch.bfloat16
