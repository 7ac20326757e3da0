"""In which order the layers of a model are executed, which is not always the order in which it lists its modules."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from torch import nn

from raysep.models.selection import Tap


class Execution:
    """When each module began and ended in one forward pass, counted in steps.

    Args:
        model: passed through once inside `recorded`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._clock = count()
        self._began: dict[str, list[int]] = {}
        self._ended: dict[str, list[int]] = {}

    def now(self) -> int:
        """The next step."""
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

    def ordered(self, taps: Sequence[Tap], intermediates: Sequence[Tap], hooked: Mapping[str, int]) -> list[Tap]:
        """Taps in the order of execution: what is inside a block before the block itself.

        Args:
            taps: to be ordered.
            intermediates: all of timm's, in its order, which is kept among them.
            hooked: steps at which the hooks of the other taps fired, by the tap's name.
        """
        steps = {**hooked, **self._steps_of(intermediates)}
        return sorted(taps, key=lambda tap: steps[tap.name])

    def _steps_of(self, intermediates: Sequence[Tap]) -> dict[str, float]:
        """When each intermediate was at hand. What no module is called like came just before the next that is known."""
        ends = [self._end_of(tap.name) for tap in intermediates]
        steps: dict[str, float] = {}
        last = -1.0
        for position, tap in enumerate(intermediates):
            end = ends[position]
            # After the hook of a module that ends with it, before that of any other.
            step = last if end is None else end + 1.5
            if end is None:
                following = [self._begin_of(later.name) for later in intermediates[position + 1 :]]
                # Halves and smaller lie between the steps of modules.
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
        """Steps of the pass that a layer is the output of: of its module, or else of the modules in it."""
        name, _, number = layer.partition("#")
        # A wrapped encoder keeps its inner names, two families say `block` for `blocks` or `stages`, and HRNet's first
        # stage is a ResNet's layer.
        candidates = [name, *(known for known in steps if known.endswith(f".{name}"))]
        candidates += ["layer1"] * (name == "stage1")
        if name.startswith("block."):
            candidates += [name.replace("block.", "blocks."), name.replace("block.", "stages.")]
        for candidate in candidates:
            if candidate in steps:
                own = steps[candidate]
                return [own[min(int(number or 0), len(own) - 1)]]
            if inner := [own[0] for known, own in steps.items() if known.startswith(f"{candidate}.")]:
                return inner
        return []
