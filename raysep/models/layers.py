"""The record of a layer in results and files. No torch import, so that reading results stays fast."""

from dataclasses import dataclass

# Names of the layer before the first block, of the network's own pooled embedding, and of its classifier's output.
STEM, HEAD, LOGITS = "stem", "head", "logits"
# Pooling of the head and the logits: the network's own.
OWN = "own"


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes:
        index: position among the selected layers, from 0.
        name: timm's module name, or `stem`.
        depth: relative position, 0 for the first layer and 1 for the last.
        dim: D, length of the pooled vector.
        pooling: `cls`, `mean`, `token0` or `max`; `own` for head and logits; `none` for pixels.
        same_as: name of the last layer, if this one is the head and only pools that layer, which is then left out.
    """

    index: int
    name: str
    depth: float
    dim: int
    pooling: str
    same_as: str = ""


def label(name: str, same_as: str) -> str:
    """The name of a layer, with the layer that it equals.

    >>> label("head", "layer4"), label("head", "")
    ('head = layer4', 'head')
    """
    return f"{name} = {same_as}" if same_as else name
