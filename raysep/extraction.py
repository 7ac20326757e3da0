"""Embeddings of images in this process, without run directory or Ray: `raysep.embed`."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raysep.config import ModelConfig
from raysep.config.load import validated
from raysep.errors import ConfigError, InputError
from raysep.telemetry.worker_stats import Meter

if TYPE_CHECKING:
    from torch import nn

# Number of unreadable images in the text of an error.
SHOWN = 5


def embed(
    model: "str | nn.Module",
    images: Sequence[Any],
    *,
    weights: bool | str = True,
    layers: str | Sequence[str] = "stages",
    pooling: str | Sequence[str] = "auto",
    image_size: int | None = None,
    batch_size: int = 32,
) -> dict[str, NDArray[np.float32]]:
    """Embed images by the layers of a model, as `raysep run` does. `raysep.compare` takes the result.

    Args:
        model: name of a timm model, or a model that timm built; it is left as it was.
        images: N paths, PIL images, or uint8 arrays of shape (H, W) or (H, W, 3).
        weights: of a named model: true: timm's pretrained weights; a path; false: random.
        layers, pooling, image_size: as `models[].layers`, `pooling` and `image_size` of a configuration.
        batch_size: images per forward pass.

    Returns:
        (N, D) by layer, from the first to the last; with several poolings by `layer (pooling)`.

    Raises:
        InputError: unreadable images, with their positions; or an unknown model or layer.
    """
    from raysep.embedding.embedder import Embedder, load_all
    from raysep.models.build import create, preprocessing_of
    from raysep.process.environment import torch_device

    name = model if isinstance(model, str) else (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name is None:
        raise InputError(f"model: expected the name of a timm model, or a model of timm, got {type(model).__name__}")
    if not len(images):
        raise InputError("images: expected at least one image, got none")
    values = {"name": name, "pretrained": weights, "layers": layers, "pooling": pooling, "image_size": image_size}
    try:
        config = validated(ModelConfig, values, "arguments")
        network = create(config) if isinstance(model, str) else model
        device = torch_device() if isinstance(model, str) else str(next(network.parameters()).device)
        training = network.training
        embedder = Embedder([network], config, preprocessing_of(network, config), device, "float32")
    except ConfigError as error:
        raise InputError("; ".join(error.problems)) from None
    try:
        places = [(None, position) for position in range(len(images))]
        batches = load_all(_Images(images), places, embedder.preprocessing, batch_size)
        embedded = embedder.embed(batches, Meter("embed"))
    finally:
        network.train(training)
    if embedded.failed:
        shown = [f"{position}: {reason}" for position, reason in sorted(embedded.failed.items())[:SHOWN]]
        raise InputError(f"{len(embedded.failed)} of {len(images)} images can't be read; {'; '.join(shown)}")
    times = Counter(layer.name for layer in embedder.layers)
    names = [each.name if times[each.name] == 1 else f"{each.name} ({each.pooling})" for each in embedder.layers]
    return dict(zip(names, embedded.vectors[0], strict=True))


@dataclass(frozen=True)
class _Images:
    """A reader of images in memory or by path, by their position."""

    images: Sequence[Any]

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002
        """The encoded image at a position."""
        image = self.images[row or 0]
        if isinstance(image, str | PathLike):
            return Path(fspath(image)).read_bytes()
        if not isinstance(image, Image.Image):
            pixels = np.asarray(image)
            if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
                raise InputError(
                    f"images: expected paths, PIL images, or uint8 arrays of shape (H, W) or (H, W, 3); image {row} is "
                    f"{type(image).__name__} of {pixels.dtype}, shape {pixels.shape}"
                )
            image = Image.fromarray(pixels)
        # Encoded and decoded again, so that modes, EXIF rotation and bit depth have the same rules as in files.
        content = io.BytesIO()
        image.save(content, format="PNG", exif=image.getexif())
        return content.getvalue()
