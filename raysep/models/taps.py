"""The layers of a model: which there are, and one forward pass that gives a vector for each.

B images, D features. Layer 0 is the output of the stem (for a ViT: patch embedding + position), then one
layer per block (plain transformers) or per stage (hierarchical nets), as timm's `forward_intermediates`
has them; where timm's first intermediate is the stem already, it is layer 0. Named modules are tapped
at their output by forward hooks. Each layer is pooled to (B, D) as soon as it is at hand.
"""

import fnmatch
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raysep.config import ModelConfig, Pooling
from raysep.errors import ConfigError
from raysep.models.build import create, preprocessing_of
from raysep.models.layers import Layer
from raysep.models.pixels import LayeredPixels, Pixels
from raysep.models.pooling import Layout, layout_of, pool

STEM = "stem"
# timm's names for the first block or stage, whose input is the stem's output.
FIRST_BLOCK = re.compile(
    r"^(.*\.)?(blocks|block|stages|layers|levels|network|transformers|dense_stages|features)\.0$"
    r"|^(serial_blocks1|stage1|level0)$"
)


@dataclass(frozen=True)
class _Tap:
    """Where a layer is read off: an intermediate of timm's, or a module's input or output."""

    name: str
    intermediate: int | None = None
    module: str | None = None
    at_input: bool = False


class LayeredModel(nn.Module):
    """A timm model whose forward pass gives the pooled vectors of its layers.

    Args:
        model: a timm model.
        layers: `all`, or names and glob patterns of layers and modules, `all` among them.
        pooling: one or several; `auto` takes the class token where the model has one, else the mean. With
            several, each place is as many layers, side by side.
        input_size: (channels, height, width), for the one dry pass that measures the layers.

    Raises:
        ConfigError: a layer name that matches nothing, or a pooling that the model can't give.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: tuple[int, int, int],
        layers: Sequence[str] | Literal["all"] = "all",
        pooling: Sequence[Pooling] = ("auto",),
    ) -> None:
        super().__init__()
        self.model = model
        # A class token is at hand only where timm gives back the tokens that stand before the patches.
        # timm's interface, which torch's Module has no type for.
        self._intermediates: Callable[..., list[Any]] = model.forward_intermediates  # type: ignore[assignment]
        options = inspect.signature(self._intermediates).parameters
        self._prefix_tokens = int(getattr(model, "num_prefix_tokens", 0) or 0)
        self._ask_prefix = "return_prefix_tokens" in options and self._prefix_tokens > 0
        self._has_cls = self._ask_prefix and isinstance(getattr(model, "cls_token", None), nn.Parameter)
        if "cls" in pooling and not self._has_cls:
            raise ConfigError(["models: pooling `cls`: the model has no class token; take `mean`, `token0` or `auto`"])
        auto = "cls" if self._has_cls else "mean"
        self._poolings = list(dict.fromkeys(auto if one == "auto" else one for one in pooling))
        self._taps = _taps_of(model)
        self._layouts: dict[int, Layout] = {}
        if layers != "all":
            self._taps = _select(self._taps, model, layers)
        self.layers = self._measure(input_size)

    def forward(self, x: Tensor) -> Tensor:
        """All layers of a batch, side by side.

        Args:
            x: (B, C, H, W), normalised.

        Returns:
            (B, sum of dims) float32; `split` cuts it into layers.
        """
        return torch.cat([vector.float() for vector in self._vectors(x)], dim=1)

    def compile_blocks(self, **options: Any) -> list[str]:
        """Have torch compile the blocks when they are first called. A block that a hook looks into stays as it is.

        Args:
            options: of `torch.compile`.

        Returns:
            The names of blocks that stay as they are.
        """
        modules = dict(self.model.named_modules())
        hooked = [tap.module for tap in self._taps if tap.module is not None]
        left = []
        for name in dict.fromkeys(
            tap.name for tap in self._taps if tap.intermediate is not None and tap.name in modules
        ):
            if any(module == name or module.startswith(f"{name}.") for module in hooked):
                left.append(name)
            else:
                modules[name].compile(**options)
        return left

    def split(self, packed: Tensor) -> list[Tensor]:
        """The packed vectors of a batch as one (B, D) tensor per layer."""
        return list(torch.split(packed, [layer.dim for layer in self.layers], dim=1))

    def _vectors(self, x: Tensor) -> list[Tensor]:
        """A vector for each tap and pooling, the poolings of a tap side by side."""
        pooled: dict[int, list[Tensor]] = {}
        with self._hooks(pooled, len(x)):
            arguments = {"return_prefix_tokens": True} if self._ask_prefix else {}
            intermediates = self._intermediates(x, intermediates_only=True, **arguments)
        for position, tap in enumerate(self._taps):
            if tap.intermediate is not None:
                pooled[position] = self._pool_intermediate(intermediates[tap.intermediate])
        missing = [tap.name for position, tap in enumerate(self._taps) if position not in pooled]
        if missing:
            raise ConfigError([f"models: the forward pass doesn't go through {', '.join(missing)}"])
        return [vector for position in range(len(self._taps)) for vector in pooled[position]]

    @contextmanager
    def _hooks(self, pooled: dict[int, list[Tensor]], batch: int) -> Iterator[None]:
        """Hooks live for one forward pass, so that they hold no tensor after it."""
        handles = []
        modules = dict(self.model.named_modules())
        for position, tap in enumerate(self._taps):
            if tap.module is None:
                continue

            def keep(values: Any, position: int = position) -> None:
                # The first pass of a module counts: some models run a block once per branch.
                if position not in pooled:
                    value = _tensor_of_batch(values, batch)
                    if value is not None:
                        pooled[position] = self._pool_hooked(position, value)

            module = modules[tap.module]
            if tap.at_input:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _m, args, kwargs, keep=keep: keep([*args, *kwargs.values()]), with_kwargs=True
                    )
                )
            else:
                handles.append(module.register_forward_hook(lambda _m, _a, output, keep=keep: keep([output])))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _pool_intermediate(self, value: Any) -> list[Tensor]:
        """Of timm's (B, D, H, W), or that and the prefix tokens (B, P, D)."""
        spatial, prefix = value if isinstance(value, tuple | list) else (value, None)
        return [
            prefix[:, 0] if prefix is not None and pooling in {"cls", "token0"} else pool(spatial, "NCHW", pooling, 0)
            for pooling in self._poolings
        ]

    def _pool_hooked(self, position: int, value: Tensor) -> list[Tensor]:
        layout = self._layouts.setdefault(position, layout_of(value, self.model))
        # A sequence holds the prefix tokens where the model has them: ViT blocks and what is in them.
        prefix_tokens = self._prefix_tokens if layout == "NLC" else 0
        return [pool(value, layout, pooling, prefix_tokens) for pooling in self._poolings]

    def _measure(self, input_size: tuple[int, int, int]) -> list[Layer]:
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                vectors = self._vectors(torch.zeros(1, *input_size, device=device))
        finally:
            self.model.train(training)
        last = max(1, len(self._taps) - 1)
        places = [(tap.name, place / last, one) for place, tap in enumerate(self._taps) for one in self._poolings]
        return [
            Layer(index, name, depth, vector.shape[1], pooling)
            for index, ((name, depth, pooling), vector) in enumerate(zip(places, vectors, strict=True))
        ]


def open_layers(
    model: nn.Module, input_size: tuple[int, int, int], config: ModelConfig
) -> LayeredModel | LayeredPixels:
    """A model ready to be read layer by layer, as its configuration asks. Raises as `LayeredModel` does."""
    if isinstance(model, Pixels):
        return LayeredPixels(model, input_size)
    return LayeredModel(model, input_size, config.layers, config.pooling)


def describe(config: ModelConfig) -> list[Layer]:
    """The layers of a model, without its weights and without computing anything where that is possible.

    Raises:
        ConfigError: as `create` and `LayeredModel` do, or an image size that the model can't take.
    """
    try:
        # Meta tensors have shapes and no values: the pass takes milliseconds for a model of any size.
        with torch.device("meta"):
            return _described(config)
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001  (a few models ask for values, which raises whatever it raises)
        return _described(config)


def _described(config: ModelConfig) -> list[Layer]:
    model = create(config, weights=False)
    preprocessing = preprocessing_of(model, config)
    size = (preprocessing.channels, *preprocessing.size)
    try:
        return open_layers(model, size, config).layers
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        if next(model.parameters()).is_meta:
            raise
        raise ConfigError(
            [f"models: {config.id} can't take images of {size[1]}x{size[2]}: {type(error).__name__}: {error}"]
        ) from error


def _taps_of(model: nn.Module) -> list[_Tap]:
    feature_info: Any = model.feature_info
    names = [info["module"] or STEM for info in feature_info]
    # Some families name a module per branch or pass, so a name may come twice.
    taps = [
        _Tap(name if names.count(name) == 1 else f"{name}#{names[:index].count(name)}", intermediate=index)
        for index, name in enumerate(names)
    ]
    first = _first_block(model, names[0])
    return [_Tap(STEM, module=first, at_input=True), *taps] if first else taps


def _first_block(model: nn.Module, name: str) -> str | None:
    """The module whose input is the stem's output, or None where timm's first layer is the stem."""
    if not FIRST_BLOCK.match(name) or (name == "features.0" and not hasattr(model, "stem")):
        return None
    modules = dict(model.named_modules())
    # A wrapped encoder keeps its inner names, and two families say `block` for `blocks` or `stages`.
    candidates = [name, *(known for known in modules if known.endswith(f".{name}")), "blocks.0", "stages.0"]
    found = next((candidate for candidate in candidates if candidate in modules), None)
    if found is not None and isinstance(modules[found], nn.ModuleList):
        found = f"{found}.0"
    return found


def _select(taps: Sequence[_Tap], model: nn.Module, wanted: Sequence[str]) -> list[_Tap]:
    """The taps that names and patterns ask for: layers in their order, then modules in the model's."""
    modules = [name for name, _ in model.named_modules() if name]
    chosen: dict[str, _Tap] = {}
    problems = []
    for pattern in wanted:
        layers = {tap.name: tap for tap in taps if pattern == "all" or fnmatch.fnmatchcase(tap.name, pattern)}
        hooked = {name: _Tap(name, module=name) for name in modules if fnmatch.fnmatchcase(name, pattern)}
        # `blocks.*` means the blocks and not everything inside them: a `*` stays within one part of a name.
        depth = pattern.count(".")
        found = layers or {name: tap for name, tap in hooked.items() if name.count(".") == depth}
        if not found:
            problems.append(
                f"models: no layer or module {pattern!r}; the layers are {', '.join(tap.name for tap in taps)}"
            )
        chosen |= found
    if problems:
        raise ConfigError(problems)
    order = {name: index for index, name in enumerate([tap.name for tap in taps] + modules)}
    position = {name: index for index, name in enumerate(modules)}
    return sorted(chosen.values(), key=lambda tap: (position.get(tap.name.partition("#")[0], -1), order[tap.name]))


def _tensor_of_batch(values: Any, batch: int) -> Tensor | None:
    """The features among a module's inputs or outputs: of the whole batch, with a feature axis."""
    found: list[Tensor] = []

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == batch and value.is_floating_point():
            found.append(value)
        elif isinstance(value, tuple | list):
            for inner in value:
                visit(inner)

    visit(values)
    return found[0] if found else None
