"""Pooling of features to one vector per image. B images, D features, L tokens, H x W positions."""

from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Layout = Literal["NCHW", "NHWC", "NLC", "NC"]


def layout_of(value: Tensor, model: nn.Module) -> Layout:
    """The layout of a hooked module's features, from their shape and the model's `output_fmt`."""
    if value.ndim == 2:
        return "NC"
    if value.ndim == 3:
        return "NLC"
    _, second, third, fourth = value.shape
    if second == third != fourth:
        return "NHWC"
    if third == fourth != second:
        return "NCHW"
    return "NHWC" if getattr(model, "output_fmt", "NCHW") == "NHWC" else "NCHW"


def pool(value: Tensor, layout: Layout, pooling: str, prefix_tokens: int) -> Tensor:
    """Pool features over tokens or positions.

    Args:
        value: (B, D, H, W), (B, H, W, D), (B, L, D) or (B, D), according to `layout`.
        pooling: `cls` and `token0` both select the first token or position; `mean` and `max` reduce over all of them.
        prefix_tokens: number of tokens before the patches, which `mean` and `max` skip.

    Returns:
        (B, D).
    """
    if layout == "NC":
        return value
    if layout == "NLC":
        tokens = value
    elif layout == "NHWC":
        tokens = value.flatten(1, -2)
    elif pooling == "mean":
        return value.mean(dim=(2, 3))
    elif pooling == "max":
        return value.amax(dim=(2, 3))
    else:
        tokens = value.flatten(2).transpose(1, 2)
    if pooling in {"cls", "token0"}:
        return tokens[:, 0]
    if pooling == "max":
        return tokens[:, prefix_tokens:].amax(dim=1)
    return tokens[:, prefix_tokens:].mean(dim=1)


def tensor_of_batch(values: Any, batch: int) -> Tensor | None:
    """The first float tensor of shape (batch, D, ...) in a module's nested inputs or outputs, or None."""
    tensors: list[Tensor] = []

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == batch and value.is_floating_point():
            tensors.append(value)
        elif isinstance(value, tuple | list):
            for inner in value:
                visit(inner)

    visit(values)
    return tensors[0] if tensors else None


# Operations of torch that keep all values.
KEEPING = {
    "flatten",
    "view",
    "_unsafe_view",
    "reshape",
    "squeeze",
    "alias",
    "detach",
    "dropout",
    "permute",
    "clone",
} | {
    "as_strided",
    "as_strided_",
}
# Poolings that an operation of torch is equal to.
EQUAL_TO = {
    **dict.fromkeys(("mean", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), ("mean",)),
    "select": ("cls", "token0"),
}


class OnlyPooling(TorchDispatchMode):
    """Context manager that records the operations of torch, to tell whether they only pool. Works on any device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operations.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings that the operations together are equal to; empty if they do more."""
        # A slice leaves out the prefix tokens.
        others = [name for name in self._operations if name not in KEEPING | {"slice"}]
        return EQUAL_TO.get(others[0], ()) if len(others) == 1 else ()
