"""From the bytes of an image to the pixels that a model is given."""

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
    """How a model wants its images: timm's data config, for evaluation, without randomness.

    Attributes:
        size: height and width in pixels.
        channels: 3 (RGB) or 1 (grey).
        interpolation: timm's name of the resize filter.
        mean, std: per channel, of values between 0 and 1.
        crop_pct: share of the resized image's edge that the crop keeps.
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
        """(channels, height, width) uint8; normalising waits until the batch is on the device."""
        pixels: torch.Tensor = self._transform(image)
        return pixels

    def normalize(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(B, channels, height, width) uint8 to standardised float32, on the tensor's own device."""
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
    source: Reader, places: Sequence[tuple[str | None, int | None]], preprocessing: Preprocessing
) -> tuple["torch.Tensor", list[int], dict[int, str]]:
    """Read and decode images.

    Args:
        places: path and row of each image.

    Returns:
        (n, channels, height, width) uint8 of what could be read, its positions in `places`, and the
        reason for each position that could not.
    """
    import torch

    pixels, good, failed = [], [], {}
    for position, (path, row) in enumerate(places):
        try:
            pixels.append(preprocessing.pixels(decode(source.read(path, row), preprocessing.channels)))
            good.append(position)
        except (UnreadableImageError, OSError) as error:
            if is_transient(error):
                # The storage, and not the image: an image that is there must not be left out.
                raise
            failed[position] = str(error)
    if not pixels:
        return torch.empty((0, preprocessing.channels, *preprocessing.size), dtype=torch.uint8), good, failed
    return torch.stack(pixels), good, failed


def check_share(failed: Mapping[str, str], total: int, allowed: float) -> None:
    """Raise StageError if more than the allowed share of images could not be read.

    Args:
        failed: image_id and reason of each.
        total: images that were to be read.
    """
    if len(failed) > allowed * total:
        examples = "; ".join(f"{image_id} ({reason})" for image_id, reason in sorted(failed.items())[:5])
        raise StageError(
            f"{len(failed)} of {total} images can't be read, more than data.max_failed_share = {allowed:g} allows: "
            f"{examples}. Repair or remove them, or raise the share."
        )


def _float32() -> Any:
    import torch

    return torch.float32
