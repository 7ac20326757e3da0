"""Embeddings of images in this process, without run directory or Ray: `raysep.embed`."""

import io
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raysep.config import ModelConfig
from raysep.config.load import validated
from raysep.data.decoding import UnreadableImageError, to_mode
from raysep.errors import ConfigError, InputError
from raysep.models.layers import LOGITS, OWN
from raysep.telemetry.worker_stats import Meter

if TYPE_CHECKING:
    from torch import nn

# Number of unreadable images in the text of an error.
SHOWN = 5
# Modes of Pillow that PNG files have.
PNG_MODES = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}


def embed(
    model: "str | nn.Module",
    images: Iterable[Any],
    *,
    weights: "bool | str | PathLike[str]" = True,
    layers: str | Sequence[str] = "stages",
    pooling: str | Sequence[str] = "auto",
    image_size: int | None = None,
    batch_size: int = 32,
) -> dict[str, NDArray[np.float32]]:
    """Embed images by the layers of a model, as `raysep run` does. `raysep.compare` takes the result.

    Args:
        model: name of a timm model, or a model that timm built, of which a copy is used, in float32.
        images: N paths, PIL images, or uint8 arrays of shape (H, W) or (H, W, 3).
        weights: of a named model: true: timm's pretrained weights; a path; false: random.
        layers, pooling, image_size: as `models[].layers`, `pooling` and `image_size` of a configuration.
        batch_size: images per forward pass.

    Returns:
        (N, D) by layer, from the first to the last; with several poolings by `layer (pooling)`. A layer that the `head`
        only pools, in one of these ways, is left out: it has the vectors of the head.

    Raises:
        InputError: unreadable images, with their positions; or an unknown model or layer.
    """
    from raysep.embedding.embedder import Embedder, load_all
    from raysep.models.build import checked_forward, create, preprocessing_of
    from raysep.process.environment import torch_device

    model = getattr(model, "_orig_mod", model)
    name = model if isinstance(model, str) else (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name is None:
        raise InputError(f"model: expected the name of a timm model, or a model of timm, got {type(model).__name__}")
    single = isinstance(images, np.ndarray) and (images.ndim == 2 or (images.ndim == 3 and images.shape[2] == 3))
    if single or isinstance(images, str | PathLike | Image.Image):
        raise InputError(f"images: expected a list of images, got one {type(images).__name__}")
    # By position: a pandas Series would be read by its index.
    images = list(images)
    if not images:
        raise InputError("images: expected at least one image, got none")
    if batch_size < 1:
        raise InputError(f"batch_size: expected 1 or more, got {batch_size}")
    if image_size is None and not isinstance(model, str):
        height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or (None, None)
        image_size = height if height == width else None
    values = {"name": name, "pretrained": _plain(weights), "layers": layers, "pooling": pooling}
    values["image_size"] = image_size
    try:
        config = validated(ModelConfig, values, "arguments")
        network = create(config) if isinstance(model, str) else deepcopy(model).float()
        if LOGITS in config.layers and not getattr(network, "num_classes", 0):
            raise InputError("layers: `logits` needs a model with a classifier: pass the model instead of its name")
        device = torch_device() if isinstance(model, str) else str(next(network.parameters()).device)
        with checked_forward(network, config):
            embedder = Embedder([network], config, preprocessing_of(network, config), device, "float32")
    except ConfigError as error:
        raise InputError("; ".join(error.problems)) from None
    places = [(None, position) for position in range(len(images))]
    embedded = embedder.embed(load_all(_Images(images), places, embedder.preprocessing, batch_size), Meter("embed"))
    if embedded.failed:
        shown = [f"{position}: {reason}" for position, reason in sorted(embedded.failed.items())[:SHOWN]]
        raise InputError(f"{len(embedded.failed)} of {len(images)} images can't be read; {'; '.join(shown)}")
    one = len(config.pooling) == 1
    names = [each.name if one or each.pooling == OWN else f"{each.name} ({each.pooling})" for each in embedder.layers]
    return dict(zip(names, embedded.vectors[0], strict=True))


@dataclass(frozen=True)
class _Images:
    """A reader of images in memory or by path, by their position."""

    images: Sequence[Any]

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002
        """The encoded image at a position."""
        image = self.images[row or 0]
        if isinstance(image, str | PathLike):
            return Path(fspath(image)).expanduser().read_bytes()
        if not isinstance(image, Image.Image):
            pixels = np.asarray(image)
            if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
                raise InputError(
                    f"images: expected paths, PIL images, or uint8 arrays of shape (H, W) or (H, W, 3); image {row} is "
                    f"{type(image).__name__} of {pixels.dtype}, shape {pixels.shape}"
                )
            image = Image.fromarray(pixels)
        # Encoded and decoded again, so that transparency, EXIF rotation and bit depth have the same rules as in files.
        content = io.BytesIO()
        try:
            exif = image.getexif()
            (image if image.mode in PNG_MODES else to_mode(image, "RGB")).save(content, format="PNG", exif=exif)
        except (ValueError, OSError, AssertionError) as error:
            raise UnreadableImageError(f"a PIL image of mode {image.mode}: {error or 'closed file'}") from None
        return content.getvalue()


def _plain(weights: "bool | str | PathLike[str]") -> bool | str:
    return weights if isinstance(weights, bool) else fspath(weights)
