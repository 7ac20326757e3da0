import time
from pathlib import Path
from typing import Any

import pytest

from raysep.config.load import build_config
from raysep.distributed import limits
from raysep.distributed.cluster_shape import Resources
from raysep.embedding.shards import schema
from raysep.errors import UsageError
from raysep.estimate import forecast as module
from raysep.estimate import speed
from raysep.estimate.forecast import HEAD, forecast, free_bytes
from raysep.models.layers import Layer
from raysep.stages import validation
from tests.conftest import TINY_CNN, TINY_VIT

DESK = Resources(((2.0, 0.0),))


@pytest.fixture
def loaded(tree: Path) -> Any:
    data = {"source": {"kind": "image_folder", "path": str(tree)}, "split": {"unseen": ["d", "e"]}}
    finetune = {"steps": 4, "evaluate_at": [0, 4], "batch_size": 8}
    score = {"metrics": ["nmi", "nn1"], "resamples": 20, "max_classes": None}
    return build_config(
        {"data": data, "models": [TINY_CNN, TINY_VIT], "finetune": finetune, "score": score, "run_dir": "runs/none"}
    )


def test_forecast_of_a_run(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory", lambda: limits.Memory(4 * 2**30, 64 * 2**30))
    readers, split = validation.check_data(loaded)
    found = forecast(loaded, split, readers, DESK)
    assert found.images == {"unseen": 24, "seen": split["role"].to_pylist().count("seen_test")}
    assert set(found.models) >= {"test_resnet", "test_vit", "test_vit--untrained", "test_vit--pixels"}
    assert [stage.name for stage in found.stages] == ["finetune", "embed", "score"]
    assert all(0 < seconds < 60 for seconds in found.seconds.values())
    rows = list(found.rows())
    assert len(rows) == 2 + 6 + 6
    assert {len(row) for row in rows} == {len(HEAD)}
    assert [row[0] for row in rows if row[0]] == ["finetune", "embed", "score"]
    assert found.caption == "2 CPUs and 0 GPUs on 1 node(s); memory 4.0 GiB (limit of the control group) of 64.0 GiB"
    # The dimensions are those of the real shards.
    dims = found.models["test_vit"].dims
    layers = [Layer(index, "l", 0.0, dim, "mean") for index, dim in enumerate(dims)]
    assert sum(field.type.list_size for field in schema(layers, "float32") if "layer" in field.name) == sum(dims)


def test_a_full_disk_is_refused_before_timing(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    readers, split = validation.check_data(loaded)
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(speed, "scoring", lambda *_: pytest.fail("probed"))
    with pytest.raises(UsageError, match="left: use another --run-dir"):
        forecast(loaded, split, readers, DESK)


def test_scoring_of_more_images_takes_longer(loaded: Any) -> None:
    start = time.perf_counter()
    small, large = (speed.scoring(loaded, count, 16, 4) for count in (600, 6000))
    assert 0 < small < time.perf_counter() - start
    assert large > 5 * small


def test_free_space_of_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    assert free_bytes(str(tmp_path / "a" / "b")) > 0
    assert free_bytes("s3://bucket/run") is None
