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
# Blocks of the families for which timm names none.
OTHER_BLOCKS = (
    r"^(blocks|(stages|transformers)\.\d+(\.blocks)?|(serial|parallel)_blocks\d*|stage\d+)\.(\d+)"
    r"|^(repeat(_\d+)?)\.(\d+)|^Mixed_\w+"
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
    """The module whose input is the stem's output; None if timm's first layer, `name`, is itself the stem."""
    if not FIRST_BLOCK.match(name) or (name == "features.0" and not hasattr(model, "stem")):
        return None
    modules = dict(model.named_modules())
    # timm's layer names lack the outer prefix of wrapped encoders; two families use `block` for `blocks` or `stages`.
    candidates = [name, *(known for known in modules if known.endswith(f".{name}")), "blocks.0", "stages.0"]
    module = next((candidate for candidate in candidates if candidate in modules), None)
    if module is not None and isinstance(modules[module], nn.ModuleList):
        module = f"{module}.0"
    return module


def blocks_of(model: nn.Module) -> list[str]:
    """Names of the modules that are the network's blocks: residual blocks of CNNs, blocks of hierarchical transformers.

    timm names them in `group_matcher`, for learning rates per block; for some families it names only stages, whose
    `blocks` are taken. Empty for families without blocks.
    """
    modules = dict(model.named_modules())
    matcher: Any = getattr(model, "group_matcher", None)
    groups = matcher(coarse=False) if matcher is not None else {}
    # Two families return a function.
    patterns = groups.get("blocks", ()) if isinstance(groups, dict) else ()
    pairs = [(patterns, None)] if isinstance(patterns, str) else [(*pair, None)[:2] for pair in patterns]
    # Patterns with a value name modules before or after the blocks; `layer1.0`, but not `layer1.0.conv1`, is a block.
    named = [pattern for pattern, value in pairs if value is None] or [OTHER_BLOCKS]
    found = [name for name in modules if any((m := re.match(r, name)) and m.end() == len(name) for r in named)]
    blocks = []
    for name in found:
        inner = getattr(modules[name], "blocks", None)
        if isinstance(inner, nn.Sequential | nn.ModuleList):
            blocks += [f"{name}.blocks.{number}" for number in range(len(inner))]
        elif any(modules[name].children()):
            blocks.append(name)
    return list(dict.fromkeys(blocks))


def block_taps(model: nn.Module, taps: Sequence[Tap]) -> list[Tap]:
    """Taps of the stem, of each block and of the head; `taps` themselves for families without blocks.

    Args:
        taps: the taps of the stages, by `taps_of`.
    """
    names = blocks_of(model)
    if not names:
        return list(taps)
    # A block before the stem's output is not one of the network's.
    names = names[names.index(taps[0].name) + 1 :] if taps[0].name in names else names

    def tap_of(name: str) -> Tap:
        """timm's own tap of a block, or inside it where timm calls its parts; else a hook."""
        return next((tap for tap in taps if f"{tap.name}.".startswith(f"{name}.")), Tap(name, module=name))

    return [taps[0], *map(tap_of, names), taps[-1]]


def select(taps: Sequence[Tap], model: nn.Module, patterns: Sequence[str]) -> list[Tap]:
    """The distinct taps that match names and patterns.

    Args:
        taps: the stem, the stages and the head.
        patterns: names and glob patterns of layers and modules; `stages`, `blocks`, `logits`.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    modules = [name for name, _ in model.named_modules() if name]
    named = {"stages": taps, "blocks": block_taps(model, taps), LOGITS: [Tap(LOGITS)]}
    chosen: dict[str, Tap] = {}
    problems = []
    for pattern in patterns:
        layers = {tap.name: tap for tap in named.get(pattern, ())}
        layers |= {tap.name: tap for tap in taps if fnmatch.fnmatchcase(tap.name, pattern)}
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
