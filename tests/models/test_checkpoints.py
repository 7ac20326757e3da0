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


def test_a_checkpoint_is_restored_bit_for_bit(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    config = ModelConfig(name="test_vit", pretrained=False, image_size=32, kwargs={"depth": 2})
    torch.manual_seed(5)
    model = create(config, 4)
    meta = CheckpointMeta(config, list("abcd"), PRE, 1, {"learning_rate": 0.1}, 7, 50, 0.5, None)
    save_checkpoint(store, model, meta)
    loaded = read_meta(store, "checkpoints/test_vit/trial=1/step=50")
    assert (loaded.model, loaded.preprocessing, loaded.seen_accuracy, loaded.seed) == (config, PRE, None, 7)
    content = store.read_bytes("checkpoints/test_vit/trial=1/step=50/model.safetensors")
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()
    restored = load_checkpoint(store, loaded)
    assert not restored.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(restored.state_dict()[key], value, rtol=0, atol=0)


def test_a_checkpoint_without_metadata_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_meta(Storage(str(tmp_path)), "checkpoints/x/trial=0/step=0")
