from pathlib import Path
from typing import Any

import pytest

from raysep.config import RunConfig
from raysep.config.load import build_config
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split
from raysep.distributed.cluster_shape import Resources
from raysep.distributed.limits import Memory
from raysep.distributed.placement import IMPORTED_BYTES
from raysep.errors import UsageError
from raysep.estimate.sizes import ModelSize, Stage, evaluated, in_units, require_room, stages
from raysep.stages.worklist import planned_trials
from tests.conftest import TINY_CNN, TINY_VIT

DESK = Resources(((2.0, 0.0),))
SIZES = {"test_resnet": ModelSize([8, 16], 1000), "test_vit": ModelSize([4, 4, 4], 500)}


def config_of(tree: Path, **sections: object) -> RunConfig:
    data = {"source": {"kind": "image_folder", "path": str(tree)}, "split": {"unseen": ["d", "e"]}}
    values = {"data": data, "models": [TINY_CNN, TINY_VIT], "baselines": {"untrained": False, "pixels": None}}
    return build_config({**values, **sections})


def split_of(config: RunConfig, tree: Path) -> Any:
    return draw_split(ImageFolder(ImageFolder.Config(path=str(tree))).records(), config.data.split)


def test_every_forward_pass_and_byte_is_counted(tree: Path) -> None:
    finetune = {"steps": 10, "evaluate_at": [0, 10], "learning_rate": [1e-3, 1e-2, 1e-1], "seeds": [0, 1]}
    config = config_of(tree, finetune=finetune, embed={"dtype": "float16", "shard_rows": 10})
    split = split_of(config, tree)
    trials = planned_trials(config)
    by_model = evaluated(config, split, trials)
    # Two seeds of the chosen learning rate, two steps; 24 unseen images, and a fifth of 36 seen ones.
    seen = split["role"].to_pylist().count("seen_test")
    assert by_model["test_vit"].checkpoints == 4
    assert by_model["test_vit"].images == 4 * (24 + seen)
    assert by_model["test_vit"].sets == 8
    assert by_model["test_vit"].largest == 24
    finetuned, embedded, scored = stages(config, split, trials, SIZES, DESK)
    assert finetuned.work == {"test_resnet": 60, "test_vit": 60}
    assert finetuned.stored_bytes == 6 * 2 * (1000 + 500)
    assert embedded.work == {"test_resnet": 4 * (24 + seen), "test_vit": 4 * (24 + seen)}
    assert embedded.stored_bytes == 4 * (24 + seen) * (24 + 12) * 2
    assert scored.work == {"test_resnet": 16, "test_vit": 24}
    assert scored.process_bytes == IMPORTED_BYTES + 3 * 4 * 24 * 16


def test_models_without_training_and_protocol_paper(tree: Path) -> None:
    config = config_of(tree, score={"protocols": ["default", "paper"]}, embed={"splits": ["unseen"]})
    split = split_of(config, tree)
    finetuned, embedded, scored = stages(config, split, planned_trials(config), SIZES, DESK)
    assert finetuned.work == {}
    assert embedded.work == {"test_resnet": 24, "test_vit": 24}
    assert scored.process_bytes == IMPORTED_BYTES + 5 * 4 * 24 * 16


def test_runs_that_do_not_fit_are_refused() -> None:
    stage = Stage("score", {}, "layers", 5 * 2**30, 3 * 2**30, 4)
    require_room([stage], 6 * 2**30, 12 * 2**30)
    require_room([stage], None, None)
    with pytest.raises(UsageError, match=r"writes 5.0 GiB, but its disk has 4.0 GiB left"):
        require_room([stage], 4 * 2**30, None)
    with pytest.raises(UsageError, match=r"score: 4 process\(es\) need 3.0 GiB .* set compute.score_actors"):
        require_room([stage], None, 11 * 2**30)
    with pytest.raises(UsageError, match=r"has 11.0 GiB of memory \(limit of its control group\) of 64.0 GiB: set"):
        require_room([stage], None, 11 * 2**30, Memory(11 * 2**30, 64 * 2**30))


def test_units() -> None:
    assert [in_units(count) for count in (0, 1023, 2048, 5 * 2**40, 5000 * 2**40)] == [
        "0 B",
        "1023 B",
        "2.0 KiB",
        "5.0 TiB",
        "5000.0 TiB",
    ]
