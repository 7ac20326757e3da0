import hashlib
from pathlib import Path

import pytest
import torch

from raysep.config import ModelConfig
from raysep.data.images import Preprocessing
from raysep.models.build import create
from raysep.models.checkpoints import load_checkpoint, save_checkpoint
from raysep.models.meta import CheckpointMeta, read_meta
from raysep.storage.store import Storage

PRE = Preprocessing((32, 32), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center")


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path):
    run = Storage(str(tmp_path))
    config = ModelConfig(name="test_vit", pretrained=False, image_size=32, kwargs={"depth": 2})
    torch.manual_seed(5)
    model = create(config, 4)
    meta = CheckpointMeta(config, list("abcd"), PRE, 1, {"learning_rate": 0.1}, 7, 50, 0.5, None)
    save_checkpoint(run, model, meta)
    found = read_meta(run, "checkpoints/test_vit/trial=1/step=50")
    assert (found.model, found.preprocessing, found.seen_accuracy, found.seed) == (config, PRE, None, 7)
    content = run.read_bytes("checkpoints/test_vit/trial=1/step=50/model.safetensors")
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    again = load_checkpoint(run, found)
    assert not again.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


def test_there_is_no_checkpoint_without_its_meta(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_meta(Storage(str(tmp_path)), "checkpoints/x/trial=0/step=0")
