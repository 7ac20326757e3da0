"""Training data of a trial: labelled images, batch order and augmentation."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raysep.config import AugmentConfig
from raysep.data.images import Preprocessing, load_batch
from raysep.data.source import Reader
from raysep.errors import StageError

# Largest data set, in bytes, to cache decoded in memory; beyond, batches are decoded on demand.
CACHE_BYTES = 2 * 1024**3


class LabelledImages:
    """Labelled images as uint8 batches. Unreadable images are skipped and recorded in `failed`, with the reason.

    Args:
        rows: rows of the split's table.
    """

    def __init__(self, rows: pa.Table, source: Reader, preprocessing: Preprocessing) -> None:
        self._paths = list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True))
        self._labels = torch.from_numpy(rows["label"].to_numpy().astype(np.int64))
        self._source, self._preprocessing = source, preprocessing
        bytes_per_image = preprocessing.channels * math.prod(preprocessing.size)
        self._cache: dict[int, Tensor] | None = {} if len(self._paths) * bytes_per_image <= CACHE_BYTES else None
        self._ids = rows["image_id"].to_pylist()
        self.failed: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) uint8 pixels and (n,) labels of the readable images. Raises StageError if there are none."""
        cache = self._cache if self._cache is not None else {}
        wanted = [index for index in indices if index not in cache and self._ids[index] not in self.failed]
        pixels, good, failed = load_batch(self._source, [self._paths[i] for i in wanted], self._preprocessing)
        loaded = {wanted[position]: image for position, image in zip(good, pixels, strict=True)}
        self.failed |= {self._ids[wanted[position]]: reason for position, reason in failed.items()}
        if self._cache is not None:
            self._cache |= loaded
        readable = [index for index in indices if index in cache or index in loaded]
        if not readable:
            image, reason = next(iter(self.failed.items()))
            raise StageError(
                f"none of the {len(indices)} images of a batch can be read, for example {image} ({reason})"
            )
        return torch.stack([cache[i] if i in cache else loaded[i] for i in readable]), self._labels[readable]


class Batches:
    """Endless batches of shuffled indices; a batch may span the end of an epoch and the start of the next."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._batch_size = count, batch_size
        self._rng, self._queue = np.random.default_rng(seed), list[int]()

    def __next__(self) -> list[int]:
        while len(self._queue) < self._batch_size:
            self._queue += self._rng.permutation(self._count).tolist()
        batch, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The random state and the remaining indices of the epoch."""
        return {"rng": self._rng.bit_generator.state, "queue": self._queue}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self._rng.bit_generator.state, self._queue = state["rng"], list(state["queue"])


def augmentation(config: AugmentConfig, preprocessing: Preprocessing) -> Any:
    """A function that augments (B, C, H, W) uint8 images, each with its own random parameters."""
    from torchvision.transforms import v2

    steps: list[Any] = []
    if config.min_crop_scale < 1:
        steps.append(v2.RandomResizedCrop(preprocessing.size, scale=(config.min_crop_scale, 1.0), antialias=True))
    if config.rotation_degrees > 0:
        fill = [round(255 * value) for value in preprocessing.mean]
        steps.append(v2.RandomRotation(config.rotation_degrees, interpolation=v2.InterpolationMode.BILINEAR, fill=fill))
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if not steps:
        return lambda pixels: pixels
    transform = v2.Compose(steps)
    # Applied per image, since v2 transforms draw once per batch.
    return lambda pixels: torch.stack([transform(image) for image in pixels])
