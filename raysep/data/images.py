"""Preprocessing: from encoded images to model inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from raysep.data.decoding import UnreadableImageError, decode
from raysep.data.source import Reader
from raysep.errors import StageError
from raysep.storage.retries import is_transient

if TYPE_CHECKING:
    import torch

__all__ = ["Preprocessing", "UnreadableImageError", "check_share", "decode", "load_batch"]


@dataclass(frozen=True)
class Preprocessing:
    """A model's deterministic evaluation preprocessing, from timm's data config.

    Attributes:
        size: height and width in pixels.
        channels: 3 (RGB) or 1 (grey).
        interpolation: resize filter, by timm's name.
        mean, std: per channel, for pixels scaled to 0 to 1.
        crop_pct: crop size as a share of the resized image's edge.
        crop_mode: `center`, `squash` or `border`, as timm defines them.
    """

    size: tuple[int, int]
    channels: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str

    def pixels(self, image: Image.Image) -> "torch.Tensor":
        """Resize and crop to (channels, height, width) uint8. `normalize` follows on the device."""
        pixels: torch.Tensor = self._transform(image)
        return pixels

    def normalize(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Standardise (B, channels, height, width) uint8 to float32, on the tensor's device."""
        mean = pixels.new_tensor(self.mean, dtype=_float32()).view(1, -1, 1, 1)
        std = pixels.new_tensor(self.std, dtype=_float32()).view(1, -1, 1, 1)
        return (pixels.to(_float32()) / 255 - mean) / std

    @cached_property
    def _transform(self) -> Any:
        from timm.data.transforms_factory import create_transform

        return create_transform(
            input_size=(self.channels, *self.size),
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_transform"}


def load_batch(
    source: Reader, locations: Sequence[tuple[str | None, int | None]], preprocessing: Preprocessing
) -> tuple["torch.Tensor", list[int], dict[int, str]]:
    """Read, decode and preprocess images.

    Args:
        locations: path and row of each image.

    Returns:
        (n, channels, height, width) uint8 of the n readable images, their positions in `locations`, and the error
        message of each unreadable one, by position.
    """
    import torch

    pixels, good, failed = [], [], {}
    for position, (path, row) in enumerate(locations):
        try:
            pixels.append(preprocessing.pixels(decode(source.read(path, row), preprocessing.channels)))
            good.append(position)
        except (UnreadableImageError, OSError) as error:
            if is_transient(error):
                # A storage error: the image itself may be readable and must not be left out.
                raise
            failed[position] = str(error)
    if not pixels:
        return torch.empty((0, preprocessing.channels, *preprocessing.size), dtype=torch.uint8), good, failed
    return torch.stack(pixels), good, failed


def check_share(failed: Mapping[str, str], total: int, allowed: float) -> None:
    """Raise StageError if more than the allowed share of images is unreadable.

    Args:
        failed: error message by image_id.
        total: number of images, readable or not.
    """
    if len(failed) > allowed * total:
        examples = "; ".join(f"{image_id} ({reason})" for image_id, reason in sorted(failed.items())[:5])
        raise StageError(
            f"{len(failed)} of {total} images can't be read, more than data.max_failed_share = {allowed:g} allows: "
            f"{examples}. Repair or remove these images, or raise data.max_failed_share."
        )


def _float32() -> Any:
    import torch

    return torch.float32
