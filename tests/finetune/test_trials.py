from pathlib import Path
from typing import Any

import pytest

from raysep.config import FinetuneConfig
from raysep.config.load import build_config
from raysep.finetune.trials import (
    Trial,
    TrialResult,
    baseline_models,
    candidates,
    choose,
    pixels_id,
    plan,
    read_result,
    write_result,
)
from raysep.storage.store import Storage
from tests.conftest import TINY_CNN, TINY_VIT


def never(space: Any, arguments: Any, seed: Any) -> None:
    raise AssertionError("grids need no sampler")


def result(
    model: str, number: int, rate: float, accuracy: float, state: Any = "finished", seed: Any = 0, **more: Any
) -> TrialResult:
    val = {0: 0.1, 10: accuracy} if state != "failed" else {}
    return TrialResult(model, number, seed, {"learning_rate": rate}, state, val, {}, 1.0, {}, **more)


def test_grids_are_crossed() -> None:
    settings = candidates(FinetuneConfig(learning_rate=[1e-3, 1e-2], weight_decay=[0.0, 0.1, 0.1]), never)
    assert settings == [
        {"learning_rate": 1e-3, "weight_decay": 0.0},
        {"learning_rate": 1e-3, "weight_decay": 0.1},
        {"learning_rate": 1e-2, "weight_decay": 0.0},
        {"learning_rate": 1e-2, "weight_decay": 0.1},
    ]


def test_random_spaces_are_sampled_reproducibly() -> None:
    config = FinetuneConfig(learning_rate={"loguniform": [1e-5, 1e-2]}, weight_decay=[0.0, 0.1], num_samples=3)
    calls = []

    def sample(space: Any, arguments: Any, seed: Any) -> Any:
        calls.append((space, arguments, seed))
        return seed + 1.0

    settings = candidates(config, sample)
    assert len(settings) == 6
    assert {call[:2] for call in calls} == {("loguniform", (1e-5, 1e-2))}
    assert {setting["learning_rate"] for setting in settings} == {1.0, 2.0, 3.0}


def test_trials_are_models_by_settings_by_seeds() -> None:
    values = {
        "data": {"source": {"kind": "digits"}, "split": {"unseen": [7, 8]}},
        "models": [TINY_CNN, TINY_VIT],
        "finetune": {"learning_rate": [1e-3, 1e-2], "seeds": [3, 4]},
        "baselines": {"untrained": False, "pixels": None},
    }
    trials = plan(build_config(values), never)
    trials_of_model = [trial for trial in trials if trial.model.id == "test_vit"]
    assert [(t.number, t.seed, t.hyperparameters["learning_rate"]) for t in trials_of_model] == [
        (0, 3, 1e-3),
        (1, 4, 1e-3),
        (2, 3, 1e-2),
        (3, 4, 1e-2),
    ]
    assert [(t.number, t.hyperparameters) for t in plan(build_config({**values, "finetune": None}), never)] == [
        (0, {})
    ] * 2


def test_each_rotation_has_separate_trials() -> None:
    values = {
        "data": {"source": {"kind": "digits"}, "split": {"unseen_fraction": 0.3, "rotations": 3}},
        "models": [TINY_CNN],
        "finetune": {"learning_rate": [1e-3, 1e-2], "seeds": [3, 4]},
    }
    trials = plan(build_config(values), never)
    trials_of_model = [t for t in trials if t.model.id == "test_resnet"]
    assert [t.number for t in trials_of_model] == list(range(2 * 3 * 2))
    assert [(t.rotation, t.seed) for t in trials_of_model[:6]] == [(r, s) for r in (0, 1, 2) for s in (3, 4)]
    untrained = [t for t in trials if t.model.id == "test_resnet--untrained"]
    assert [(t.number, t.rotation, t.hyperparameters) for t in untrained] == [(0, 0, {}), (1, 1, {}), (2, 2, {})]


def test_models_with_the_same_preprocessing_share_a_pixel_baseline() -> None:
    values = {
        "data": {"source": {"kind": "digits"}, "split": {"unseen": [7, 8]}},
        "models": [
            {**TINY_CNN, "crop_pct": 1.0},
            {**TINY_VIT, "crop_pct": 1.0},
            {**TINY_CNN, "id": "larger", "image_size": 64},
            {**TINY_CNN, "id": "pooled", "image_size": 64, "pooling": "max"},
        ],
        "baselines": {"untrained": False},
    }
    config = build_config(values)
    pixels = baseline_models(config)
    assert [model.id for model in pixels] == ["test_resnet--pixels", "test_vit--pixels", "larger--pixels"]
    assert [pixels_id(config, model) for model in config.models] == [
        "test_resnet--pixels",
        "test_vit--pixels",
        "larger--pixels",
        "larger--pixels",
    ]


def test_the_best_mean_over_seeds_is_chosen_for_each_model() -> None:
    results = [
        result("a", 0, 0.1, 0.9, seed=0),
        result("a", 1, 0.1, 0.1, seed=1),
        result("a", 2, 0.2, 0.6, seed=0),
        result("a", 3, 0.2, 0.6, seed=1),
        result("b", 0, 0.1, 0.3),
    ]
    assert [(r.model_id, r.number) for r in choose(results)] == [("a", 2), ("a", 3), ("b", 0)]


def test_stopped_and_failed_trials_are_not_chosen_and_ties_go_to_the_smaller_rate() -> None:
    results = [
        result("a", 0, 0.3, 0.99, "stopped"),
        result("a", 1, 0.2, 0.5),
        result("a", 2, 0.1, 0.5),
        result("a", 3, 0.4, 0.0, "failed"),
    ]
    assert [r.number for r in choose(results)] == [2]
    assert choose(results[:1]) == []


def test_a_setting_with_a_failed_seed_ranks_below_a_complete_one() -> None:
    results = [
        result("a", 0, 0.1, 0.9),
        result("a", 1, 0.1, 0.9, "failed"),
        result("a", 2, 0.2, 0.5),
        result("a", 3, 0.2, 0.5),
    ]
    assert {r.hyperparameters["learning_rate"] for r in choose(results)} == {0.2}


@pytest.fixture
def trial() -> Trial:
    return plan(
        build_config(
            {
                "data": {"source": {"kind": "digits"}, "split": {"unseen": [7, 8]}},
                "models": [TINY_CNN],
                "finetune": {"steps": 10},
            }
        ),
        never,
    )[0]


def test_a_trial_has_ended_when_its_result_and_checkpoints_exist(tmp_path: Path, trial: Trial) -> None:
    store = Storage(str(tmp_path))
    assert read_result(store, trial, [0, 10]) is None
    write_result(store, trial, result("test_resnet", 0, 0.1, 0.5))
    assert read_result(store, trial, [0, 10]) is None
    for step in (0, 10):
        for name in ("meta.json", "model.safetensors"):
            store.write_bytes(f"{trial.directory}/step={step}/{name}", b"x")
    assert read_result(store, trial, [0, 10]) == result("test_resnet", 0, 0.1, 0.5)
    assert read_result(store, trial, [0, 5, 10]) is None


def test_stopped_trials_have_ended_and_failed_ones_have_not(tmp_path: Path, trial: Trial) -> None:
    store = Storage(str(tmp_path))
    write_result(store, trial, result("test_resnet", 0, 0.1, 0.5, "stopped"))
    assert read_result(store, trial, [0, 10]) is not None
    write_result(store, trial, result("test_resnet", 0, 0.1, 0.5, "failed", error="x"))
    assert read_result(store, trial, [0, 10]) is None
