"""From a batch of images to the vectors of all layers, for the checkpoints of one model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raysep.config import Precision
from raysep.data.images import load_batch
from raysep.data.sources import Reader
from raysep.finetune.training import autocast_dtype
from raysep.models.checkpoints import load_checkpoint
from raysep.models.layers import Layer
from raysep.models.meta import CheckpointMeta
from raysep.models.taps import open_layers
from raysep.storage import Storage

Vectors = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Embedded:
    """The vectors of the images that could be read.

    Attributes:
        good: positions of these images among those that were asked for.
        failed: position and reason of each of the others.
        vectors: for each checkpoint, for each layer, (n, D).
    """

    good: list[int]
    failed: dict[int, str]
    vectors: list[Vectors]


class Embedder:
    """Several checkpoints of one model, which share the decoding of each image.

    Args:
        run: the run directory that the checkpoints lie in.
        metas: checkpoints of one model, with one preprocessing.
        device: a torch device.
        precision: of the forward pass.
    """

    def __init__(self, run: Storage, metas: Sequence[CheckpointMeta], device: str, precision: Precision) -> None:
        first = metas[0]
        self._preprocessing = first.preprocessing
        size = (self._preprocessing.channels, *self._preprocessing.size)
        self._models = [open_layers(load_checkpoint(run, meta).to(device), size, meta.model).eval() for meta in metas]
        self._device, self._dtype = device, autocast_dtype(precision, device)

    @property
    def layers(self) -> list[Layer]:
        """The layers, which are the same for all checkpoints."""
        return self._models[0].layers

    def embed(self, source: Reader, places: Sequence[tuple[str | None, int | None]], batch_size: int) -> Embedded:
        """Read, decode and embed images, `batch_size` at a time."""
        good: list[int] = []
        failed: dict[int, str] = {}
        parts: list[list[torch.Tensor]] = [[] for _ in self._models]
        for first in range(0, len(places), batch_size):
            pixels, readable, unreadable = load_batch(source, places[first : first + batch_size], self._preprocessing)
            good += [first + position for position in readable]
            failed |= {first + position: reason for position, reason in unreadable.items()}
            if not readable:
                continue
            for part, packed in zip(parts, self.forward(pixels), strict=True):
                part.append(packed)
        vectors = [
            [layer.numpy() for layer in model.split(torch.cat(part))]
            if part
            else [np.empty((0, layer.dim), np.float32) for layer in model.layers]
            for model, part in zip(self._models, parts, strict=True)
        ]
        return Embedded(good, failed, vectors)

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) uint8 to one packed (B, sum of dims) float32 tensor on the host per checkpoint."""
        with (
            torch.inference_mode(),
            torch.autocast(torch.device(self._device).type, dtype=self._dtype, enabled=self._dtype is not None),
        ):
            inputs = self._preprocessing.normalize(pixels.to(self._device))
            return [model(inputs).cpu() for model in self._models]
