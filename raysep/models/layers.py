"""What a layer is in results and files. No torch here, so that results are read quickly."""

from dataclasses import dataclass

# The name of the layer before the first block.
STEM = "stem"


@dataclass(frozen=True)
class Layer:
    """One layer as the results have it.

    Attributes:
        index: position among the layers that were asked for, from 0.
        name: timm's module name, or `stem`.
        depth: relative position, 0 for the first layer and 1 for the last.
        dim: D, features of the pooled vector.
        pooling: how it was pooled: `cls`, `mean`, `token0` or `max`; `none` for pixels.
    """

    index: int
    name: str
    depth: float
    dim: int
    pooling: str
