"""The record of a layer in results and files. No torch import, so that reading results stays fast."""

from dataclasses import dataclass

# Name of the layer before the first block.
STEM = "stem"


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes:
        index: position among the selected layers, from 0.
        name: timm's module name, or `stem`.
        depth: relative position, 0 for the first layer and 1 for the last.
        dim: D, length of the pooled vector.
        pooling: `cls`, `mean`, `token0` or `max`; `none` for pixels.
    """

    index: int
    name: str
    depth: float
    dim: int
    pooling: str
