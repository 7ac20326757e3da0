"""Layers of a model, all computed and pooled in one forward pass.

B images, D features. Layer 0 is the output of the stem (for a ViT: patch embedding + position), followed by one layer
per block (plain transformers) or stage (hierarchical networks), from timm's `forward_intermediates`, or on request by
one per residual block; if timm's first intermediate is the stem, it is layer 0. The last layer is the head: the pooled
embedding that the network itself gives (`forward_head(..., pre_logits=True)`), after its final norm and any layers of
its own between the last block and the classifier. Forward hooks read the outputs of further modules by name. Each layer
is pooled to (B, D) as soon as it is computed. Layers are numbered in execution order: modules inside a block come
before the block.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raysep.config import Pooling
from raysep.errors import ConfigError
from raysep.models.execution import Execution
from raysep.models.layers import HEAD, LOGITS, OWN, Layer
from raysep.models.pooling import Layout, OnlyPooling, layout_of, pool, tensor_of_batch
from raysep.models.selection import select, taps_of

# Name and pooling of a layer.
Key = tuple[str, str]


class LayeredModel(nn.Module):
    """A timm model whose forward pass returns the pooled vectors of its layers.

    Args:
        model: a timm model.
        input_size: (channels, height, width), for a dry run that measures the layers.
        layers: names and glob patterns of layers and modules; `stages`, `blocks` and `logits` as in the configuration.
        pooling: `auto` is the class token if the model has one, else the mean. With several, each gives a tap a
            separate layer.
        final_norm: apply the network's final norm to each block before pooling.

    Raises:
        ConfigError: a pattern that matches no layer, a pooling that the model does not support, or a final norm that
            fits only the last block.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: tuple[int, int, int],
        layers: Sequence[str] = ("stages",),
        pooling: Sequence[Pooling] = ("auto",),
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        default = taps_of(model)
        # Methods of timm's models, unknown to the type of nn.Module.
        self._intermediates: Callable[..., Any] = model.forward_intermediates  # type: ignore[assignment]
        self._forward_head: Callable[..., Tensor] = model.forward_head  # type: ignore[assignment]
        # The class token is available only if timm can return the prefix tokens.
        options = inspect.signature(self._intermediates).parameters
        self._prefix_tokens = int(getattr(model, "num_prefix_tokens", 0) or 0)
        has_prefix = "return_prefix_tokens" in options and self._prefix_tokens > 0
        self._arguments = {"return_prefix_tokens": True} if has_prefix else {}
        self._final_norm = final_norm
        if final_norm:
            self._arguments["norm"] = True
        has_cls = has_prefix and isinstance(getattr(model, "cls_token", None), nn.Parameter)
        if "cls" in pooling and not has_cls:
            raise ConfigError(["models: pooling `cls`: the model has no class token; use `mean`, `token0` or `auto`"])
        auto = "cls" if has_cls else "mean"
        self._poolings = list(dict.fromkeys(auto if name == "auto" else name for name in pooling))
        self._taps = select(default, model, layers)
        self._layouts: dict[str, Layout] = {}
        # Indices of timm's intermediates to return; None: all. The pass ends after the last one unless it is `_full`.
        self._indices: list[int] | None = None
        self._full = True
        self.layers = self._measure(input_size)

    def forward(self, x: Tensor) -> Tensor:
        """The vectors of all layers, concatenated.

        Args:
            x: (B, C, H, W), normalised.

        Returns:
            (B, sum of dims) float32; `split` separates the layers.
        """
        pooled = self._pooled(x)
        return torch.cat([pooled[layer.name, layer.pooling].float() for layer in self.layers], dim=1)

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
            tap.name for tap in taps_of(self.model) if tap.intermediate is not None and tap.name in modules
        ):
            if any(module == name or module.startswith(f"{name}.") for module in hooked):
                skipped.append(name)
            else:
                modules[name].compile(**options)
        return skipped

    def split(self, packed: Tensor) -> list[Tensor]:
        """Split the output of `forward` into one (B, D) tensor per layer."""
        return list(torch.split(packed, [layer.dim for layer in self.layers], dim=1))

    def _pooled(self, x: Tensor, dry: "_DryRun | None" = None) -> dict[Key, Tensor]:
        """Run a forward pass. Returns the vectors of all taps and poolings; records a dry run."""
        pooled: dict[Key, Tensor] = {}
        with self._hooks(pooled, len(x), dry):
            if self._full:
                final, intermediates = self._intermediates(x, indices=self._indices, **self._arguments)
                if dry is not None:
                    dry.final, dry.version = final, getattr(final, "_version", 0)
                with dry.head if dry is not None else nullcontext():
                    pooled[HEAD, OWN] = self._forward_head(final, pre_logits=True)
                if any(tap.name == LOGITS for tap in self._taps):
                    pooled[LOGITS, OWN] = self._forward_head(final)
            else:
                options = {"indices": self._indices, "stop_early": True, "intermediates_only": True}
                intermediates = self._intermediates(x, **options, **self._arguments)
        for tap in self._taps:
            if tap.intermediate is not None:
                position = tap.intermediate if self._indices is None else self._indices.index(tap.intermediate)
                pooled |= self._pool_intermediate(tap.name, intermediates[position])
                if dry is not None:
                    dry.values[tap.name] = intermediates[position]
        return pooled

    @contextmanager
    def _hooks(self, pooled: dict[Key, Tensor], batch: int, dry: "_DryRun | None") -> Iterator[None]:
        """Register hooks for a single forward pass, so that no tensor outlives it."""
        handles = []
        modules = dict(self.model.named_modules())
        for tap in self._taps:
            if tap.module is None:
                continue

            def read(values: Any, name: str = tap.name) -> None:
                # Only the first call of a module counts: some models call a block once per branch.
                if (name, self._poolings[0]) not in pooled:
                    value = tensor_of_batch(values, batch)
                    if value is not None:
                        pooled.update(self._pool_hooked(name, value))
                        if dry is not None:
                            dry.values[name], dry.steps[name] = value, dry.execution.now()
                            dry.versions[name] = getattr(value, "_version", 0)

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

    def _pool_intermediate(self, name: str, value: Any) -> dict[Key, Tensor]:
        """Pool an intermediate of timm: (B, D, H, W), optionally with the prefix tokens (B, P, D)."""
        spatial, prefix = value if isinstance(value, tuple | list) else (value, None)
        return {
            (name, pooling): prefix[:, 0]
            if prefix is not None and pooling in {"cls", "token0"}
            else pool(spatial, "NCHW", pooling, 0)
            for pooling in self._poolings
        }

    def _pool_hooked(self, name: str, value: Tensor) -> dict[Key, Tensor]:
        layout = self._layouts.setdefault(name, layout_of(value, self.model))
        # Token sequences (of ViT blocks and their modules) include the prefix tokens.
        prefix_tokens = self._prefix_tokens if layout == "NLC" else 0
        return {(name, pooling): pool(value, layout, pooling, prefix_tokens) for pooling in self._poolings}

    def _measure(self, input_size: tuple[int, int, int]) -> list[Layer]:
        """Sort the taps by execution, measure their layers in a dry run, and plan where later passes end."""
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                pooled, same_as, by_head = self._dry_pass(torch.zeros(1, *input_size, device=device))
        finally:
            self.model.train(training)
        poolings = {tap.name: [OWN] if tap.after_features else self._poolings for tap in self._taps}
        if same_as:
            poolings[same_as] = [pooling for pooling in self._poolings if pooling not in by_head]
        taps = [tap for tap in self._taps if poolings[tap.name]]
        last = max(1, len(taps) - 1)
        rows = [
            (tap.name, position / last, pooled[tap.name, pooling].shape[1], pooling, same_as * (tap.name == HEAD))
            for position, tap in enumerate(taps)
            for pooling in poolings[tap.name]
        ]
        return [Layer(index, *row) for index, row in enumerate(rows)]

    def _dry_pass(self, x: Tensor) -> tuple[dict[Key, Tensor], str, tuple[str, ...]]:
        """Run a full pass, to sort the taps by execution, and find where later passes can end.

        Returns:
            The vectors; and the name of the last layer before the head, if the head only pools it, with the poolings
            that it is equal to.
        """
        dry = _DryRun(Execution(self.model))
        with dry.execution.recorded():
            pooled = self._pooled(x, dry)
        missing = [tap.name for tap in self._taps if tap.module is not None and tap.name not in dry.steps]
        if missing:
            raise ConfigError(
                [
                    f"models: no features pass through {', '.join(missing)}: select layers, or modules before the "
                    "classifier"
                ]
            )
        intermediates = [tap for tap in taps_of(self.model) if tap.intermediate is not None]
        ends = dry.execution.steps_of(intermediates)
        # The head is the last layer.
        steps = dry.steps | ends | {LOGITS: float("inf"), HEAD: float("inf")}
        self._taps = sorted(self._taps, key=lambda tap: (steps[tap.name], tap.name == HEAD))
        needed: set[int | None] = {tap.intermediate for tap in self._taps if tap.intermediate is not None}
        for tap in self._taps:
            if tap.intermediate is None:
                # A hooked module runs before the next intermediate ends.
                later = (other.intermediate for other in intermediates if ends[other.name] > steps[tap.name])
                needed.add(next(later, None))
        self._full = None in needed
        indices = sorted(index for index in needed if index is not None)
        # timm returns at least one intermediate.
        self._indices = None if len(indices) == len(intermediates) else indices or [0]
        read = [tap for tap in intermediates if tap in self._taps]
        widths = {pooled[tap.name, self._poolings[0]].shape[1] for tap in read}
        # Once for each intermediate, and once before the head.
        if self._final_norm and (len(widths) > 1 or dry.execution.calls("norm") <= len(intermediates)):
            raise ConfigError(
                [
                    f"models: final_norm: timm can't apply the network's final norm to its layers, of "
                    f"{', '.join(map(str, sorted(widths)))} features: leave it out"
                ]
            )
        by_head = dry.head.poolings
        if not any(tap.name == HEAD for tap in self._taps) or not {*by_head} & {*self._poolings}:
            return pooled, "", ()
        # The head gets the last intermediate itself, or its norm.
        # A later operation in place, such as an activation, changes it after the hook has read it.
        final = [
            tap.name
            for tap in self._taps
            if dry.values.get(tap.name) is dry.final and dry.versions.get(tap.name, dry.version) == dry.version
        ]
        if self._final_norm and read[-1:] == intermediates[-1:]:
            final = [intermediates[-1].name]
        return pooled, final[-1] if final else "", by_head


@dataclass
class _DryRun:
    """Records of a forward pass.

    Attributes:
        execution: steps of all modules.
        steps: steps of the hooks, by tap name.
        values: features of each tap, before pooling.
        versions: version counter of the features of each hook, when it read them.
        final, version: features that the head gets, and their version counter.
        head: operations of the head.
    """

    execution: Execution
    steps: dict[str, float] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    final: Any = None
    version: int = 0
    head: OnlyPooling = field(default_factory=OnlyPooling)
