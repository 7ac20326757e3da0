"""The taps of a model (where its layers are read), and their selection by names and patterns."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from raysep.errors import ConfigError
from raysep.models.layers import HEAD, LOGITS, STEM

# timm's names for the first block or stage, whose input is the stem's output.
FIRST_BLOCK = re.compile(
    r"^(.*\.)?(blocks|block|stages|layers|levels|network|transformers|dense_stages|features)\.0$"
    r"|^(serial_blocks1|stage1|level0)$"
)


@dataclass(frozen=True)
class Tap:
    """Where a layer is read: an intermediate of timm, the input or output of a hooked module, or else the head.

    Attributes:
        name: name of the layer.
        intermediate: index into the result of `forward_intermediates`.
        module: name of the hooked module.
        at_input: read the module's input instead of its output.
    """

    name: str
    intermediate: int | None = None
    module: str | None = None
    at_input: bool = False

    @property
    def after_features(self) -> bool:
        """Whether the layer is the head or the logits."""
        return self.intermediate is None and self.module is None


def taps_of(model: nn.Module) -> list[Tap]:
    """Taps of the stem, of timm's intermediates and of the head. Raises ConfigError if the model has none."""
    if not hasattr(model, "feature_info") or not hasattr(model, "forward_intermediates"):
        raise ConfigError(["models: timm has no intermediate layers for this model"])
    feature_info: Any = model.feature_info
    names = [info["module"] or STEM for info in feature_info]
    # Some families repeat a module name per branch or pass.
    taps = [
        Tap(name if names.count(name) == 1 else f"{name}#{names[:index].count(name)}", intermediate=index)
        for index, name in enumerate(names)
    ]
    first = _first_block(model, names[0])
    return [*([Tap(STEM, module=first, at_input=True)] if first else []), *taps, Tap(HEAD)]


def _first_block(model: nn.Module, name: str) -> str | None:
    """The module whose input is the stem's output, or None if timm's first layer is the stem."""
    if not FIRST_BLOCK.match(name) or (name == "features.0" and not hasattr(model, "stem")):
        return None
    modules = dict(model.named_modules())
    # timm's layer names lack the outer prefix of wrapped encoders; two families use `block` for `blocks` or `stages`.
    candidates = [name, *(known for known in modules if known.endswith(f".{name}")), "blocks.0", "stages.0"]
    module = next((candidate for candidate in candidates if candidate in modules), None)
    if module is not None and isinstance(modules[module], nn.ModuleList):
        module = f"{module}.0"
    return module


def select(taps: Sequence[Tap], model: nn.Module, patterns: Sequence[str]) -> list[Tap]:
    """The distinct taps that match names and patterns.

    Args:
        taps: the model's default layers.
        patterns: names and glob patterns of layers and modules; `all` for the default layers; `logits`.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    modules = [name for name, _ in model.named_modules() if name]
    chosen: dict[str, Tap] = {}
    problems = []
    for pattern in patterns:
        layers = {tap.name: tap for tap in taps if pattern == "all" or fnmatch.fnmatchcase(tap.name, pattern)}
        if pattern == LOGITS:
            layers = {LOGITS: Tap(LOGITS)}
        hooked = {name: Tap(name, module=name) for name in modules if fnmatch.fnmatchcase(name, pattern)}
        # `*` does not match dots: `blocks.*` selects the blocks but not the modules inside them.
        depth = pattern.count(".")
        matches = layers or {name: tap for name, tap in hooked.items() if name.count(".") == depth}
        if not matches:
            problems.append(
                f"models: no layer or module {pattern!r}; the layers are {', '.join(tap.name for tap in taps)}"
            )
        chosen |= matches
    if problems:
        raise ConfigError(problems)
    return list(chosen.values())
