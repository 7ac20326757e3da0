"""Image corruptions at severities 1 to 5, applied by a reader that wraps a source.

Kinds and severities follow ImageNet-C (Hendrycks, Dietterich 2019, arXiv:1903.12261). The blur scales with the image
size: a radius that is mild on large images would erase small ones.
"""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from raysep.config.names import Corruption
from raysep.config.registry import CORRUPTIONS
from raysep.data.decoding import decode
from raysep.data.source import Reader, encode

Rng = np.random.Generator
Corrupt = Callable[[Image.Image, int, Rng], Image.Image]


def corruption(function: Corrupt) -> Corrupt:
    """Register a corruption under its function name. It maps (RGB image, severity 1 to 5, generator) to an image."""
    CORRUPTIONS.add(function.__name__, function)
    return function


@corruption
def blur(image: Image.Image, severity: int, rng: Rng) -> Image.Image:  # noqa: ARG001
    """Gaussian blur with sigma from 0.5 % to 4 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur((0.005, 0.01, 0.015, 0.025, 0.04)[severity - 1] * min(image.size)))


@corruption
def noise(image: Image.Image, severity: int, rng: Rng) -> Image.Image:
    """Independent Gaussian noise per pixel and channel, with sigma from 0.04 to 0.38 of the full range."""
    sigma = 255 * (0.04, 0.08, 0.12, 0.22, 0.38)[severity - 1]
    pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


@corruption
def contrast(image: Image.Image, severity: int, rng: Rng) -> Image.Image:  # noqa: ARG001
    """Scale the contrast around the mean grey by a factor of 0.6 to 0.1, by severity."""
    return ImageEnhance.Contrast(image).enhance((0.6, 0.45, 0.3, 0.2, 0.1)[severity - 1])


@corruption
def jpeg(image: Image.Image, severity: int, rng: Rng) -> Image.Image:  # noqa: ARG001
    """JPEG compression at quality 40 down to 7."""
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=(40, 25, 18, 12, 7)[severity - 1])
    return Image.open(content)


@corruption
def rotation(image: Image.Image, severity: int, rng: Rng) -> Image.Image:
    """Rotate by at most 10 degrees to at most 180, by severity; fill the corners with the border's mean colour."""
    limit = (10, 20, 45, 90, 180)[severity - 1]
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(axis=0)
    fill = tuple(round(float(value)) for value in border)
    return image.rotate(float(rng.uniform(-limit, limit)), resample=Image.Resampling.BILINEAR, fillcolor=fill)


@corruption
def colour(image: Image.Image, severity: int, rng: Rng) -> Image.Image:
    """Scale and shift each channel by random amounts, at most 0.1 to at most 0.5 of the full range, by severity."""
    strength = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    scale, shift = 1 + rng.uniform(-strength, strength, 3), 255 * rng.uniform(-strength, strength, 3)
    pixels = np.asarray(image, dtype=np.float32) * scale + shift
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


class Corrupted:
    """Reader that corrupts the images of another source, deterministically per image.

    Args:
        source: reader of the original images.
        corruption: name of a registered corruption.
        severity: 1 to 5.
    """

    def __init__(self, source: Reader, corruption: Corruption, severity: int) -> None:
        self._source, self._corruption, self._severity = source, corruption, severity

    def read(self, path: str | None, row: int | None) -> bytes:
        """The corrupted image as PNG. Raises OSError, UnreadableImageError."""
        image = decode(self._source.read(path, row))
        digest = hashlib.sha256(f"{self._corruption}\x1f{self._severity}\x1f{path}\x1f{row}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return encode(CORRUPTIONS[self._corruption](image, self._severity, rng))
