"""The raw-pixel baseline: a model of one layer, which is the image itself."""

import torch
from torch import Tensor, nn

from raysep.models.layers import Layer


class Pixels(nn.Module):
    """Images as vectors: averaged down to at most `edge` pixels on a side, and flattened.

    Whole images of 224 pixels would be vectors of 150,528 features, more bytes than all layers of most
    networks; 32 pixels keep what distances between pixels can tell.

    Args:
        edge: pixels.
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
        model: the pixels.
        input_size: (channels, height, width).
    """

    def __init__(self, model: Pixels, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = model
        dim = model(torch.zeros(1, *input_size)).shape[1]
        self.layers = [Layer(0, "pixels", 0.0, dim, "none")]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) float32."""
        packed: Tensor = self.model(x).float()
        return packed

    def compile_blocks(self, **_: object) -> list[str]:
        """There are none."""
        return []

    def split(self, packed: Tensor) -> list[Tensor]:
        """The one layer."""
        return [packed]
