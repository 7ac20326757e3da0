"""Where the layers of a model are read off, and which of them names and patterns ask for."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from raysep.errors import ConfigError
from raysep.models.layers import STEM

# timm's names for the first block or stage, whose input is the stem's output.
FIRST_BLOCK = re.compile(
    r"^(.*\.)?(blocks|block|stages|layers|levels|network|transformers|dense_stages|features)\.0$"
    r"|^(serial_blocks1|stage1|level0)$"
)


@dataclass(frozen=True)
class Tap:
    """Where a layer is read off: an intermediate of timm's, or a module's input or output.

    Attributes:
        name: of the layer.
        intermediate: position in what `forward_intermediates` returns.
        module: name of the module that is hooked.
        at_input: its input is read, not its output.
    """

    name: str
    intermediate: int | None = None
    module: str | None = None
    at_input: bool = False


def taps_of(model: nn.Module) -> list[Tap]:
    """The stem, and then what timm has as intermediates. Raises ConfigError: the model has none."""
    if not hasattr(model, "feature_info") or not hasattr(model, "forward_intermediates"):
        raise ConfigError(["models: timm has no intermediate layers for this model"])
    feature_info: Any = model.feature_info
    names = [info["module"] or STEM for info in feature_info]
    # Some families name a module per branch or pass, so a name may come twice.
    taps = [
        Tap(name if names.count(name) == 1 else f"{name}#{names[:index].count(name)}", intermediate=index)
        for index, name in enumerate(names)
    ]
    first = _first_block(model, names[0])
    return [Tap(STEM, module=first, at_input=True), *taps] if first else taps


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


def select(taps: Sequence[Tap], model: nn.Module, wanted: Sequence[str]) -> list[Tap]:
    """The taps that names and patterns ask for, each once.

    Args:
        taps: the model's own layers.
        wanted: names and glob patterns, `all` among them.

    Raises:
        ConfigError: one that matches nothing.
    """
    modules = [name for name, _ in model.named_modules() if name]
    chosen: dict[str, Tap] = {}
    problems = []
    for pattern in wanted:
        layers = {tap.name: tap for tap in taps if pattern == "all" or fnmatch.fnmatchcase(tap.name, pattern)}
        hooked = {name: Tap(name, module=name) for name in modules if fnmatch.fnmatchcase(name, pattern)}
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
    return list(chosen.values())
