"""Time per piece of work, measured on this machine with one process."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysep.config import ModelConfig, RunConfig
from raysep.data.images import load_batch
from raysep.data.source import Reader
from raysep.estimate.sizes import ModelSize
from raysep.finetune.training import autocast_dtype
from raysep.models.build import create, preprocessing_of
from raysep.models.layered import open_layers
from raysep.models.layout import fastest_layout
from raysep.process.environment import torch_device
from raysep.scoring.backends import open_backend
from raysep.scoring.scoring import score_layer
from raysep.stages.worklist import wanted_of

# Images to time a model on, and images of the smaller of the two layers whose scoring is timed.
PROBED_IMAGES, SCORED_IMAGES = 32, 300


class ModelProbe:
    """Times one model on a few of the run's images.

    Args:
        model: configuration of the model.
        rows: rows of the split.
        reader: reader of their images.
    """

    def __init__(self, model: ModelConfig, rows: pa.Table, reader: Reader) -> None:
        self._device = torch_device()
        self._model = create(model, weights=False).to(self._device)
        self._preprocessing = preprocessing_of(self._model, model)
        size = (self._preprocessing.channels, *self._preprocessing.size)
        self._layered = open_layers(self._model, size, model).eval()
        self._image_size = size
        rows = rows.slice(0, PROBED_IMAGES)
        self._rows = list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True))
        self._reader = reader

    @property
    def size(self) -> ModelSize:
        """Dimensions of the layers, and bytes of the weights."""
        stored = sum(value.numel() * value.element_size() for value in self._model.state_dict().values())
        return ModelSize([layer.dim for layer in self._layered.layers], stored)

    def decoding(self) -> float:
        """Seconds to read and decode one image."""
        return _second_time(lambda: load_batch(self._reader, self._rows, self._preprocessing)) / len(self._rows)

    def embedding(self, config: RunConfig) -> float:
        """Seconds of a forward pass, per image."""
        pixels = self._batch()
        dtype = autocast_dtype(config.embed.precision, self._device)
        layout = fastest_layout(self._layered, self._image_size, self._device, dtype)

        def forward() -> None:
            with torch.inference_mode(), torch.autocast(self._device, dtype=dtype, enabled=dtype is not None):
                self._layered(self._preprocessing.normalize(pixels).to(memory_format=layout)).cpu()

        return _second_time(forward) / len(pixels)

    def training(self, batch_size: int) -> float:
        """Seconds of an optimizer step, assumed proportional to its number of images."""
        pixels = self._preprocessing.normalize(self._batch())
        self._model.train()

        def step() -> None:
            self._model(pixels).square().mean().backward()

        try:
            return _second_time(step) / len(pixels) * batch_size
        finally:
            self._model.eval()

    def _batch(self) -> torch.Tensor:
        pixels, _, _ = load_batch(self._reader, self._rows, self._preprocessing)
        # Without readable images use zeros: the time doesn't depend on the values.
        size = self._preprocessing.size
        if not len(pixels):
            pixels = torch.zeros(PROBED_IMAGES, self._preprocessing.channels, *size, dtype=torch.uint8)
        return pixels.to(self._device)


def scoring(config: RunConfig, N: int, D: int, K: int) -> float:
    """Seconds to score a layer (N, D) of K classes, extrapolated from two small layers with a power law of N."""
    wanted, score = wanted_of(config.score), config.score
    backend = open_backend(config.score.backend)
    rng = np.random.default_rng(0)
    taken = []
    least = max(SCORED_IMAGES, 4 * K)
    for count in (least, 2 * least):
        y = np.arange(count) % K
        X = (0.2 * rng.normal(size=(K, D))[y] + rng.normal(size=(count, D))).astype(np.float32)
        taken.append(_second_time(lambda X=X, y=y: score_layer(X, y, wanted, backend, score)))  # type: ignore[misc]
    power = min(2.0, max(0.0, math.log2(taken[1] / taken[0])))
    growth: float = max(1.0, N / (2 * least)) ** max(1.0, power)
    return taken[1] * growth


def _second_time(work: Callable[[], Any]) -> float:
    """Seconds of the second of two calls, since the first also loads and allocates."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
