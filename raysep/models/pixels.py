"""The raw-pixel baseline: a model whose only layer is the image."""

import torch
from torch import Tensor, nn

from raysep.models.layers import Layer


class Pixels(nn.Module):
    """Flattens images, after average pooling to at most `edge` pixels per side.

    Images of 224 pixels would give 150,528 features, more bytes than all layers of most networks together.

    Args:
        edge: maximum height and width in pixels.
    """

    def __init__(self, edge: int) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * h * w)."""
        size = (min(self.edge, x.shape[2]), min(self.edge, x.shape[3]))
        return nn.functional.adaptive_avg_pool2d(x, size).flatten(1)


class LayeredPixels(nn.Module):
    """`Pixels` with the interface of `taps.LayeredModel`.

    Args:
        model: the baseline.
        input_size: (channels, height, width).
    """

    def __init__(self, model: Pixels, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = model
        dim = model(torch.zeros(1, *input_size)).shape[1]
        self.layers = [Layer(0, "pixels", 0.0, dim, "none")]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) float32: the downscaled pixels of a (B, C, H, W) batch, as vectors."""
        packed: Tensor = self.model(x).float()
        return packed

    def compile_blocks(self, **_: object) -> list[str]:
        """Do nothing: the baseline has no blocks."""
        return []

    def split(self, packed: Tensor) -> list[Tensor]:
        """The vectors of the only layer."""
        return [packed]
