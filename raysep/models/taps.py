"""The layers of a model: which there are, and one forward pass that gives a vector for each.

B images, D features. Layer 0 is the output of the stem (for a ViT: patch embedding + position), then one
layer per block (plain transformers) or per stage (hierarchical nets), as timm's `forward_intermediates`
has them; where timm's first intermediate is the stem already, it is layer 0. Named modules are tapped
at their output by forward hooks. Each layer is pooled to (B, D) as soon as it is at hand. Layers are numbered
in the order in which the network executes them: what is inside a block comes before the block itself, and the
last one is the network's last block, or what was asked for behind it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raysep.config import ModelConfig, Pooling
from raysep.errors import ConfigError
from raysep.models.build import create, on_meta, passes, preprocessing_of
from raysep.models.execution import Execution
from raysep.models.layers import Layer
from raysep.models.pixels import LayeredPixels, Pixels
from raysep.models.pooling import Layout, layout_of, pool, tensor_of_batch
from raysep.models.selection import select, taps_of


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
        intermediates = taps_of(model)
        # timm's interface, which torch's Module has no type for.
        self._intermediates: Callable[..., list[Any]] = model.forward_intermediates  # type: ignore[assignment]
        # A class token is at hand only where timm gives back the tokens that stand before the patches.
        options = inspect.signature(self._intermediates).parameters
        self._prefix_tokens = int(getattr(model, "num_prefix_tokens", 0) or 0)
        self._ask_prefix = "return_prefix_tokens" in options and self._prefix_tokens > 0
        self._has_cls = self._ask_prefix and isinstance(getattr(model, "cls_token", None), nn.Parameter)
        if "cls" in pooling and not self._has_cls:
            raise ConfigError(["models: pooling `cls`: the model has no class token; take `mean`, `token0` or `auto`"])
        auto = "cls" if self._has_cls else "mean"
        self._poolings = list(dict.fromkeys(auto if one == "auto" else one for one in pooling))
        self._taps = intermediates if layers == "all" else select(intermediates, model, layers)
        self._layouts: dict[str, Layout] = {}
        # Whether something was asked for that comes after timm's last intermediate.
        self._to_the_end = False
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
        pooled = self._pooled(x)
        return [vector for tap in self._taps for vector in pooled[tap.name]]

    def _pooled(self, x: Tensor, fired: Callable[[str], None] = lambda _: None) -> dict[str, list[Tensor]]:
        """One forward pass: by the tap's name, a vector for each pooling. A hook that has read calls `fired`."""
        pooled: dict[str, list[Tensor]] = {}
        arguments = {"return_prefix_tokens": True} if self._ask_prefix else {}
        with self._hooks(pooled, len(x), fired):
            if self._to_the_end:
                final, intermediates = self._intermediates(x, **arguments)
                self.model.forward_head(final, pre_logits=True)  # type: ignore[operator]
            else:
                intermediates = self._intermediates(x, intermediates_only=True, **arguments)
        for tap in self._taps:
            if tap.intermediate is not None:
                pooled[tap.name] = self._pool_intermediate(intermediates[tap.intermediate])
        return pooled

    @contextmanager
    def _hooks(self, pooled: dict[str, list[Tensor]], batch: int, fired: Callable[[str], None]) -> Iterator[None]:
        """Hooks live for one forward pass, so that they hold no tensor after it."""
        handles = []
        modules = dict(self.model.named_modules())
        for tap in self._taps:
            if tap.module is None:
                continue

            def keep(values: Any, name: str = tap.name) -> None:
                # The first pass of a module counts: some models run a block once per branch.
                if name not in pooled:
                    value = tensor_of_batch(values, batch)
                    if value is not None:
                        pooled[name] = self._pool_hooked(name, value)
                        fired(name)

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

    def _pool_hooked(self, name: str, value: Tensor) -> list[Tensor]:
        layout = self._layouts.setdefault(name, layout_of(value, self.model))
        # A sequence holds the prefix tokens where the model has them: ViT blocks and what is in them.
        prefix_tokens = self._prefix_tokens if layout == "NLC" else 0
        return [pool(value, layout, pooling, prefix_tokens) for pooling in self._poolings]

    def _measure(self, input_size: tuple[int, int, int]) -> list[Layer]:
        """Put the taps into the order of execution, and say what each gives."""
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                pooled = self._dry_pass(torch.zeros(1, *input_size, device=device))
        finally:
            self.model.train(training)
        last = max(1, len(self._taps) - 1)
        places = [
            (tap.name, place / last, pooling, vector.shape[1])
            for place, tap in enumerate(self._taps)
            for pooling, vector in zip(self._poolings, pooled[tap.name], strict=True)
        ]
        return [Layer(index, name, depth, dim, pooling) for index, (name, depth, pooling, dim) in enumerate(places)]

    def _dry_pass(self, x: Tensor) -> dict[str, list[Tensor]]:
        """The first pass, which orders the taps: up to the last intermediate, or on where that isn't enough."""
        for self._to_the_end in (False, True):
            execution = Execution(self.model)
            steps: dict[str, int] = {}

            def fired(name: str, steps: dict[str, int] = steps, execution: Execution = execution) -> None:
                steps[name] = execution.now()

            with execution.recorded():
                pooled = self._pooled(x, fired)
            missing = [tap.name for tap in self._taps if tap.name not in pooled]
            if not missing:
                break
        else:
            raise ConfigError(
                [
                    f"models: no features pass through {', '.join(missing)}: expected layers, modules in or between "
                    "them, or what comes before the classifier"
                ]
            )
        self._taps = execution.ordered(self._taps, taps_of(self.model), steps)
        return pooled


def open_layers(
    model: nn.Module, input_size: tuple[int, int, int], config: ModelConfig
) -> LayeredModel | LayeredPixels:
    """A model ready to be read layer by layer, as its configuration asks. Raises as `LayeredModel` does."""
    if isinstance(model, Pixels):
        return LayeredPixels(model, input_size)
    try:
        return LayeredModel(model, input_size, config.layers, config.pooling)
    except ConfigError as error:
        problems = [problem.removeprefix("models: ") for problem in error.problems]
        raise ConfigError([f"models: {config.id}: {problem}" for problem in problems], error.source) from None


def describe(config: ModelConfig) -> list[Layer]:
    """The layers of a model, without its weights and without computing anything where that is possible.

    Raises:
        ConfigError: as `create` and `LayeredModel` do, or an image size that the model can't take.
    """
    return on_meta(lambda: _described(config))


def _described(config: ModelConfig) -> list[Layer]:
    model = create(config, weights=False)
    with passes(model, config):
        preprocessing = preprocessing_of(model, config)
        return open_layers(model, (preprocessing.channels, *preprocessing.size), config).layers
