"""Embeds batches of images: the vectors of all layers, for the checkpoints of one model."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysep.config import ModelConfig, Precision
from raysep.data.images import Preprocessing, load_batch
from raysep.data.source import Reader
from raysep.finetune.training import autocast_dtype
from raysep.models.checkpoints import load_checkpoint
from raysep.models.layered import open_layers
from raysep.models.layers import Layer
from raysep.models.layout import fastest_layout
from raysep.models.meta import CheckpointMeta
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter

Vectors = list[NDArray[np.float32]]
ImagePaths = Sequence[tuple[str | None, int | None]]


@dataclass(frozen=True)
class Decoded:
    """A batch of decoded images.

    Attributes:
        pixels: (n, C, H, W) uint8 of the readable images.
        good: positions of the readable images in the block.
        failed: reason for each unreadable image, by position in the block.
    """

    pixels: torch.Tensor
    good: list[int]
    failed: dict[int, str]


def load_all(source: Reader, paths: ImagePaths, preprocessing: Preprocessing, batch_size: int) -> Iterator[Decoded]:
    """Read and decode images, `batch_size` at a time."""
    for first in range(0, len(paths), batch_size):
        pixels, good, failed = load_batch(source, paths[first : first + batch_size], preprocessing)
        yield Decoded(
            pixels,
            [first + position for position in good],
            {first + position: reason for position, reason in failed.items()},
        )


@dataclass(frozen=True)
class Embedded:
    """The vectors of a block of images.

    Attributes:
        good: positions of the readable images in the block.
        failed: reason for each unreadable image, by position in the block.
        vectors: (n, D) per checkpoint and layer, for the n readable images.
    """

    good: list[int]
    failed: dict[int, str]
    vectors: list[Vectors]


class Embedder:
    """Embeds images with all checkpoints of one model, so that each image is decoded once.

    Args:
        models: models of one architecture, with different weights.
        config: layers and poolings of the models.
        preprocessing: preprocessing of the models.
        device: a torch device.
        precision: precision of the forward pass.
        compiled: compile the model's blocks with `torch.compile`.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        config: ModelConfig,
        preprocessing: Preprocessing,
        device: str,
        precision: Precision,
        compiled: bool = False,
    ) -> None:
        self.preprocessing = preprocessing
        size = (preprocessing.channels, *preprocessing.size)
        self._models = [open_layers(model.to(device), size, config).eval() for model in models]
        # Blocks that are not compiled, as hooks read layers inside them.
        self.uncompiled = (
            sorted({name for model in self._models for name in model.compile_blocks()}) if compiled else []
        )
        self._device, self._dtype = device, autocast_dtype(precision, device)
        # All models have the same architecture, hence the same fastest memory layout.
        (self._layout,) = {fastest_layout(model, size, device, self._dtype) for model in self._models}
        # Images per forward pass: reduced after the GPU ran out of memory; None: a whole batch.
        self._at_once: int | None = None

    @classmethod
    def of_checkpoints(
        cls, store: Storage, metas: Sequence[CheckpointMeta], device: str, precision: Precision, compiled: bool = False
    ) -> "Embedder":
        """Open the embedder of checkpoints of one model, which have the same preprocessing.

        Args:
            store: the run directory of the checkpoints.
        """
        models = [load_checkpoint(store, meta) for meta in metas]
        return cls(models, metas[0].model, metas[0].preprocessing, device, precision, compiled)

    @property
    def layers(self) -> list[Layer]:
        """Layers of the model, which all checkpoints share."""
        return self._models[0].layers

    def embed(self, batches: Iterable[Decoded], meter: Meter) -> Embedded:
        """Embed batches, and concatenate the vectors per checkpoint and layer."""
        good: list[int] = []
        failed: dict[int, str] = {}
        parts: list[list[torch.Tensor]] = [[] for _ in self._models]
        start = time.perf_counter()
        for batch in batches:
            good += batch.good
            failed |= batch.failed
            if batch.good:
                with meter.sample("forward"):
                    packed = self.forward(batch.pixels, meter)
                for part, vectors in zip(parts, packed, strict=True):
                    part.append(vectors)
                now = time.perf_counter()
                meter.observe("batch", now - start)
                start = now
        vectors_of = [
            [layer.numpy() for layer in model.split(torch.cat(part))]
            if part
            else [np.empty((0, layer.dim), np.float32) for layer in model.layers]
            for model, part in zip(self._models, parts, strict=True)
        ]
        return Embedded(good, failed, vectors_of)

    def forward(self, pixels: torch.Tensor, meter: Meter) -> list[torch.Tensor]:
        """Forward pass of (B, C, H, W) uint8 pixels to a packed (B, sum of dims) float32 host tensor per checkpoint.

        When GPU memory runs out, the batch size is halved for this and later calls, and the meter counts a retry.

        Raises:
            torch.OutOfMemoryError: a single image doesn't fit.
        """
        while True:
            size = min(self._at_once or len(pixels), len(pixels))
            try:
                parts = [self._pass(chunk) for chunk in pixels.split(size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self._at_once = size // 2
                meter.again("memory")
                torch.cuda.empty_cache()
            else:
                return parts[0] if len(parts) == 1 else [torch.cat(chunks) for chunks in zip(*parts, strict=True)]

    def _pass(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        with (
            torch.inference_mode(),
            torch.autocast(torch.device(self._device).type, dtype=self._dtype, enabled=self._dtype is not None),
        ):
            inputs = self.preprocessing.normalize(pixels.to(self._device)).to(memory_format=self._layout)
            return [model(inputs).cpu() for model in self._models]
