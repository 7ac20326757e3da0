import torch

from raysep.config import AugmentConfig
from raysep.data.images import Preprocessing
from raysep.finetune.images import Batches, augmentation


def test_batches_contain_every_image_once_per_epoch() -> None:
    batches = Batches(10, 4, seed=0)
    first = [index for _ in range(5) for index in next(batches)]
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))


def test_augmentation_draws_per_image_and_may_be_disabled() -> None:
    preprocessing = Preprocessing((16, 16), 3, "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, "center")
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).repeat(4, 1, 1, 1)
    assert augmentation(AugmentConfig(), preprocessing)(pixels) is pixels
    changed = augmentation(AugmentConfig(rotation_degrees=30, horizontal_flip=True, min_crop_scale=0.5), preprocessing)(
        pixels
    )
    assert (changed.shape, changed.dtype) == (pixels.shape, torch.uint8)
    assert len({image.numpy().tobytes() for image in changed}) > 1
