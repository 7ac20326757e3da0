"""Execution order of a model's layers, which may differ from the order of its modules."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from torch import nn

from raysep.models.selection import Tap


class Execution:
    """Records the clock steps at which each module starts and ends in a forward pass.

    Args:
        model: to be called once inside `recorded`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._clock = count()
        self._began: dict[str, list[int]] = {}
        self._ended: dict[str, list[int]] = {}

    def now(self) -> int:
        """Advance the clock and return its step."""
        return next(self._clock)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the forward passes in this block."""
        handles = []
        for name, module in self._model.named_modules():

            def begin(*_: Any, name: str = name) -> None:
                self._began.setdefault(name, []).append(self.now())

            def end(*_: Any, name: str = name) -> None:
                self._ended.setdefault(name, []).append(self.now())

            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def calls(self, module: str) -> int:
        """Number of calls of a module."""
        return len(self._began.get(module, ()))

    def steps_of(self, intermediates: Sequence[Tap]) -> dict[str, float]:
        """The step of each intermediate's output; if no module matches it, a step earlier than its successor's."""
        ends = [self._end_of(tap.name) for tap in intermediates]
        steps: dict[str, float] = {}
        last = -1.0
        for position, tap in enumerate(intermediates):
            end = ends[position]
            # After the hooks of modules that end at the same time, before any later hook.
            step = last if end is None else end + 1.5
            if end is None:
                following = [self._begin_of(later.name) for later in intermediates[position + 1 :]]
                # Module steps are integers, so halves fall between them.
                step = next((begin - 0.5 for begin in following if begin is not None), last)
            last = max(step, last + 1e-6)
            steps[tap.name] = last
        return steps

    def _begin_of(self, layer: str) -> int | None:
        began = self._passes(self._began, layer)
        return min(began) if began else None

    def _end_of(self, layer: str) -> int | None:
        ended = self._passes(self._ended, layer)
        return max(ended) if ended else None

    def _passes(self, steps: Mapping[str, list[int]], layer: str) -> list[int]:
        """Steps of the recorded pass at which a layer ran: of its module if recorded, else of each module inside."""
        name, _, number = layer.partition("#")
        # timm's layer names differ from module names in wrapped encoders (no outer prefix), in two families (`block`
        # for `blocks` or `stages`), and in HRNet (`stage1` for `layer1`).
        candidates = [name, *(known for known in steps if known.endswith(f".{name}"))]
        candidates += ["layer1"] * (name == "stage1")
        if name.startswith("block."):
            candidates += [name.replace("block.", "blocks."), name.replace("block.", "stages.")]
        for candidate in candidates:
            if candidate in steps:
                of_passes = steps[candidate]
                return [of_passes[min(int(number or 0), len(of_passes) - 1)]]
            if inner := [of_passes[0] for known, of_passes in steps.items() if known.startswith(f"{candidate}.")]:
                return inner
        return []
