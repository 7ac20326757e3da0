"""How long a run's pieces take, from a short probe on this machine: seconds for each, one process working."""

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
from raysep.models.layout import fastest_layout
from raysep.models.taps import open_layers
from raysep.scoring.backends import open_backend
from raysep.scoring.scoring import score_layer
from raysep.stages.worklist import wanted_of

# Images of the probe, and of the smaller of two layers whose scoring is timed.
PROBED_IMAGES, SCORED_IMAGES = 32, 300


class ModelProbe:
    """One model on a few of the run's images.

    Args:
        model: its configuration.
        rows: of the split: images that it is tried on.
        reader: of these images.
    """

    def __init__(self, model: ModelConfig, rows: pa.Table, reader: Reader) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = create(model, weights=False).to(self._device)
        self._preprocessing = preprocessing_of(self._model, model)
        size = (self._preprocessing.channels, *self._preprocessing.size)
        self._layered = open_layers(self._model, size, model).eval()
        self._image_size = size
        rows = rows.slice(0, PROBED_IMAGES)
        self._places = list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True))
        self._reader = reader

    @property
    def size(self) -> ModelSize:
        """Dims and bytes."""
        stored = sum(value.numel() * value.element_size() for value in self._model.state_dict().values())
        return ModelSize([layer.dim for layer in self._layered.layers], stored)

    def decoding(self) -> float:
        """Seconds to read and decode one image."""
        return _second_time(lambda: load_batch(self._reader, self._places, self._preprocessing)) / len(self._places)

    def embedding(self, config: RunConfig) -> float:
        """Seconds of one image's forward pass."""
        pixels = self._batch()
        dtype = autocast_dtype(config.embed.precision, self._device)
        layout = fastest_layout(self._layered, self._image_size, self._device, dtype)

        def forward() -> None:
            with torch.inference_mode(), torch.autocast(self._device, dtype=dtype, enabled=dtype is not None):
                self._layered(self._preprocessing.normalize(pixels).to(memory_format=layout)).cpu()

        return _second_time(forward) / len(pixels)

    def training(self, batch_size: int) -> float:
        """Seconds of an optimizer step; its time goes with the images in it."""
        pixels = self._preprocessing.normalize(self._batch())
        self._model.train()

        def step() -> None:
            self._model(pixels).square().mean().backward()

        try:
            return _second_time(step) / len(pixels) * batch_size
        finally:
            self._model.eval()

    def _batch(self) -> torch.Tensor:
        pixels, _, _ = load_batch(self._reader, self._places, self._preprocessing)
        # Of images that can't be read there is no batch: any pixels take as long.
        size = self._preprocessing.size
        if not len(pixels):
            pixels = torch.zeros(PROBED_IMAGES, self._preprocessing.channels, *size, dtype=torch.uint8)
        return pixels.to(self._device)


def scoring(config: RunConfig, N: int, D: int, K: int) -> float:
    """Seconds to score one layer of N images: from two small ones, since time grows with a power of N."""
    wanted, score = wanted_of(config), config.score
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
    """Seconds of a second call: the first one also loads and allocates."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
