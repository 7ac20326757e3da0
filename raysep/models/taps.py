"""Layers of a model, all computed and pooled in one forward pass.

B images, D features. Layer 0 is the output of the stem (for a ViT: patch embedding + position), followed by one layer
per block (plain transformers) or stage (hierarchical networks), from timm's `forward_intermediates`; if timm's first
intermediate is the stem, it is layer 0. Forward hooks read the outputs of further modules by name. Each layer is pooled
to (B, D) as soon as it is computed. Layers are numbered in execution order: modules inside a block come before the
block, and the last layer is the last block, or a selected module after it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raysep.config import ModelConfig, Pooling
from raysep.errors import ConfigError
from raysep.models.build import checked_forward, create, on_meta, preprocessing_of
from raysep.models.execution import Execution
from raysep.models.layers import Layer
from raysep.models.pixels import LayeredPixels, Pixels
from raysep.models.pooling import Layout, layout_of, pool, tensor_of_batch
from raysep.models.selection import select, taps_of


class LayeredModel(nn.Module):
    """A timm model whose forward pass returns the pooled vectors of its layers.

    Args:
        model: a timm model.
        input_size: (channels, height, width), for a dry run that measures the layers.
        layers: `all`, or names and glob patterns of layers and modules, which may include `all`.
        pooling: `auto` is the class token if the model has one, else the mean. Each pooling of a tap is a separate
            layer.

    Raises:
        ConfigError: a pattern that matches no layer, or a pooling that the model does not support.
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
        # A method of timm's models, unknown to the type of nn.Module.
        self._intermediates: Callable[..., list[Any]] = model.forward_intermediates  # type: ignore[assignment]
        # The class token is available only if timm can return the prefix tokens.
        options = inspect.signature(self._intermediates).parameters
        self._prefix_tokens = int(getattr(model, "num_prefix_tokens", 0) or 0)
        self._has_prefix = "return_prefix_tokens" in options and self._prefix_tokens > 0
        self._has_cls = self._has_prefix and isinstance(getattr(model, "cls_token", None), nn.Parameter)
        if "cls" in pooling and not self._has_cls:
            raise ConfigError(["models: pooling `cls`: the model has no class token; use `mean`, `token0` or `auto`"])
        auto = "cls" if self._has_cls else "mean"
        self._poolings = list(dict.fromkeys(auto if name == "auto" else name for name in pooling))
        self._taps = intermediates if layers == "all" else select(intermediates, model, layers)
        self._layouts: dict[str, Layout] = {}
        # Whether a selected module comes after timm's last intermediate.
        self._include_head = False
        self.layers = self._measure(input_size)

    def forward(self, x: Tensor) -> Tensor:
        """The vectors of all layers, concatenated.

        Args:
            x: (B, C, H, W), normalised.

        Returns:
            (B, sum of dims) float32; `split` separates the layers.
        """
        return torch.cat([vector.float() for vector in self._vectors(x)], dim=1)

    def compile_blocks(self, **options: Any) -> list[str]:
        """Compile each block at its first call, except blocks with hooks.

        Args:
            options: options of `torch.compile`.

        Returns:
            Names of the blocks that are not compiled.
        """
        modules = dict(self.model.named_modules())
        hooked = [tap.module for tap in self._taps if tap.module is not None]
        skipped = []
        for name in dict.fromkeys(
            tap.name for tap in self._taps if tap.intermediate is not None and tap.name in modules
        ):
            if any(module == name or module.startswith(f"{name}.") for module in hooked):
                skipped.append(name)
            else:
                modules[name].compile(**options)
        return skipped

    def split(self, packed: Tensor) -> list[Tensor]:
        """Split the output of `forward` into one (B, D) tensor per layer."""
        return list(torch.split(packed, [layer.dim for layer in self.layers], dim=1))

    def _vectors(self, x: Tensor) -> list[Tensor]:
        """The vectors of all layers: taps in execution order, and the poolings of each tap."""
        pooled = self._pooled(x)
        return [vector for tap in self._taps for vector in pooled[tap.name]]

    def _pooled(self, x: Tensor, fired: Callable[[str], None] = lambda _: None) -> dict[str, list[Tensor]]:
        """Run a forward pass. Returns a vector per pooling, by tap name. Each hook calls `fired` once."""
        pooled: dict[str, list[Tensor]] = {}
        arguments = {"return_prefix_tokens": True} if self._has_prefix else {}
        with self._hooks(pooled, len(x), fired):
            if self._include_head:
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
        """Register hooks for a single forward pass, so that no tensor outlives it."""
        handles = []
        modules = dict(self.model.named_modules())
        for tap in self._taps:
            if tap.module is None:
                continue

            def read(values: Any, name: str = tap.name) -> None:
                # Only the first call of a module counts: some models call a block once per branch.
                if name not in pooled:
                    value = tensor_of_batch(values, batch)
                    if value is not None:
                        pooled[name] = self._pool_hooked(name, value)
                        fired(name)

            module = modules[tap.module]
            if tap.at_input:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _m, args, kwargs, read=read: read([*args, *kwargs.values()]), with_kwargs=True
                    )
                )
            else:
                handles.append(module.register_forward_hook(lambda _m, _a, output, read=read: read([output])))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _pool_intermediate(self, value: Any) -> list[Tensor]:
        """Pool an intermediate of timm: (B, D, H, W), optionally with the prefix tokens (B, P, D)."""
        spatial, prefix = value if isinstance(value, tuple | list) else (value, None)
        return [
            prefix[:, 0] if prefix is not None and pooling in {"cls", "token0"} else pool(spatial, "NCHW", pooling, 0)
            for pooling in self._poolings
        ]

    def _pool_hooked(self, name: str, value: Tensor) -> list[Tensor]:
        layout = self._layouts.setdefault(name, layout_of(value, self.model))
        # Token sequences (of ViT blocks and their modules) include the prefix tokens.
        prefix_tokens = self._prefix_tokens if layout == "NLC" else 0
        return [pool(value, layout, pooling, prefix_tokens) for pooling in self._poolings]

    def _measure(self, input_size: tuple[int, int, int]) -> list[Layer]:
        """Sort the taps by execution, and measure their layers in a dry run."""
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                pooled = self._dry_pass(torch.zeros(1, *input_size, device=device))
        finally:
            self.model.train(training)
        last = max(1, len(self._taps) - 1)
        rows = [
            (tap.name, position / last, vector.shape[1], pooling)
            for position, tap in enumerate(self._taps)
            for pooling, vector in zip(self._poolings, pooled[tap.name], strict=True)
        ]
        return [Layer(index, *row) for index, row in enumerate(rows)]

    def _dry_pass(self, x: Tensor) -> dict[str, list[Tensor]]:
        """Run a first pass, up to the last intermediate or including the head if needed, to sort the taps."""
        for self._include_head in (False, True):
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
                    f"models: no features pass through {', '.join(missing)}: select layers, or modules before the "
                    "classifier"
                ]
            )
        self._taps = execution.ordered(self._taps, taps_of(self.model), steps)
        return pooled


def open_layers(
    model: nn.Module, input_size: tuple[int, int, int], config: ModelConfig
) -> LayeredModel | LayeredPixels:
    """Wrap a model for layer-wise reading, as configured. Raises as `LayeredModel` does."""
    if isinstance(model, Pixels):
        return LayeredPixels(model, input_size)
    try:
        return LayeredModel(model, input_size, config.layers, config.pooling)
    except ConfigError as error:
        problems = [problem.removeprefix("models: ") for problem in error.problems]
        raise ConfigError([f"models: {config.id}: {problem}" for problem in problems], error.source) from None


def describe(config: ModelConfig) -> list[Layer]:
    """The layers of a model, without weights, and on the meta device if possible.

    Raises:
        ConfigError: for the reasons of `create` and `LayeredModel`, or an unsupported image size.
    """
    return on_meta(lambda: _described(config))


def _described(config: ModelConfig) -> list[Layer]:
    model = create(config, weights=False)
    with checked_forward(model, config):
        preprocessing = preprocessing_of(model, config)
        return open_layers(model, (preprocessing.channels, *preprocessing.size), config).layers
