"""Loading of the user's weights into a timm model, with a one-line report of used and unused weights."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from raysep.errors import ConfigError
from raysep.models.checkpoint_files import read_checkpoint
from raysep.models.fitting import Attempt, Target
from raysep.models.key_groups import count_by_prefix, grouped
from raysep.storage.uris import file_exists

# Order of preference among matching state dicts: weight averages (EMA) as in timm, then teachers of self-distillation,
# then others; auxiliary networks of pretext tasks last.
_KINDS = (
    re.compile(r"(^|[^a-z])ema([^a-z]|$)|modelema|averaged"),
    re.compile(r"teacher"),
    re.compile(r""),
    re.compile(r"student|momentum|encoder_k|key_encoder|target|predictor|discriminator"),
)
# timm's order of preference within a kind.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Parts of keys that identify other libraries.
_LIBRARIES = (
    ("embeddings.patch_embeddings.", "transformers (Hugging Face)"),
    ("embeddings.class_embedding", "transformers (Hugging Face)"),
    ("encoder_layer_0.", "torchvision's vision transformer"),
    ("transformer.resblocks.", "OpenCLIP or CLIP"),
    (".ffn.layers.0.0.", "mmpretrain's vision transformer"),
    ("layer1.0.conv1.", "a ResNet"),
    ("features.denseblock1.", "torchvision's DenseNet"),
    ("features.0.0.", "torchvision's MobileNet, EfficientNet or ConvNeXt"),
    ("blocks.0.attn.qkv.", "a vision transformer of timm"),
    ("layers.0.blocks.0.attn.", "a Swin transformer"),
    ("stages.0.0.", "a network of stages (ConvNeXt, RegNet, ...)"),
    ("patch_embed.proj.", "a vision transformer"),
    ("conv_stem.", "an EfficientNet or MobileNet of timm"),
)


@dataclass(frozen=True)
class Loaded:
    """Report of loaded weights.

    Attributes:
        sentence: summary for the log: the key in the file that held the weights, the prefix stripped from their names,
            and the unused keys, with counts.
        pickled: the file is a pickle, not safetensors.
    """

    sentence: str
    pickled: bool


def load_weights(model: nn.Module, path: str, name: str) -> Loaded:
    """Load a safetensors file, or the tensors of a torch pickle, into `model`.

    The weights may be in any container (`state_dict`, `model_ema`, ...) and have any key prefix (`module.`, ...). If
    several match, the order of preference is: an average over steps (EMA), as in timm; a teacher; timm's order. A tie
    between different weights is an error. The rules of timm for the model family rename other libraries' keys and
    resample position embeddings; a first convolution of three channels is summed for models of grey images. The
    classifier is loaded only if its shape matches.

    Args:
        path: local path or URI.
        name: name of the model, for messages.

    Raises:
        ConfigError: no such file, no weights in it, or none that match (the message lists all unknown and missing
            keys).
    """
    if not file_exists(path):
        raise ConfigError([f"models: {name}: no weights at {path} (set `pretrained` to a weights file, true or false)"])
    file = read_checkpoint(path, name)
    target = Target(model, name)
    attempts = [attempt for container in file.containers for attempt in target.attempts(container)]
    matches = [attempt for attempt in attempts if not attempt.problems and attempt.state]
    if not matches:
        raise ConfigError([_mismatch(attempts, target, path, name)])
    chosen = _preferred(matches, path, name)
    if invalid := [key for key, value in chosen.state.items() if value.is_floating_point() and not _finite(value)]:
        raise ConfigError([f"models: {name}: {path} has NaN or infinity in {'; '.join(grouped(invalid))}"])
    model.load_state_dict(chosen.state, strict=False)
    return Loaded(_sentence(chosen, attempts, target, path), file.pickled)


def _finite(value: torch.Tensor) -> bool:
    return bool(value.isfinite().all())


def _preferred(matches: Sequence[Attempt], path: str, name: str) -> Attempt:
    """The best-ranked match. Raises ConfigError for a tie between different weights."""
    best = min(_rank(attempt) for attempt in matches)
    first = [attempt for attempt in matches if _rank(attempt) == best]
    # timm's rules may also find the same tensors without the prefix removed: report the match that uses all keys.
    first.sort(key=lambda attempt: attempt.prefixed - attempt.converted)
    if any(not _same(first[0], other) for other in first[1:]):
        names = ", ".join(f"`{attempt.where or '(top level)'}`" for attempt in first)
        raise ConfigError(
            [
                f"models: {name}: {path} contains several different matching state dicts: {names}. Save the intended "
                "one in a file of its own"
            ]
        )
    return first[0]


def _rank(attempt: Attempt) -> tuple[int, int]:
    name = attempt.where.lower()
    kind = next(kind for kind in (0, 1, 3, 2) if _KINDS[kind].search(name))
    last = attempt.container.path[-1] if attempt.container.path else ""
    return kind, _CONTAINERS.index(last) if last in _CONTAINERS else len(_CONTAINERS)


def _same(first: Attempt, second: Attempt) -> bool:
    return first.state.keys() == second.state.keys() and all(
        torch.equal(value, second.state[key]) for key, value in first.state.items()
    )


def _sentence(chosen: Attempt, attempts: Sequence[Attempt], target: Target, path: str) -> str:
    container = f" in `{chosen.container.name}`" if chosen.container.path else ""
    prefix = f", without the prefix `{chosen.prefix}`" if chosen.prefix else ""
    parts = [f"{path}: {len(chosen.state)} tensors{container}{prefix}"]
    if chosen.converted < chosen.prefixed:
        parts.append(f"timm's rules for {target.architecture} used {chosen.converted} of {chosen.prefixed} keys")
    if chosen.summed:
        parts.append("first convolution summed over 3 channels, for grey images")
    others = [other for other in attempts if other.where != chosen.where]
    # timm's rules may also find the same tensors without the prefix removed.
    if unused := [other for other in others if other.state and not other.problems and not _same(chosen, other)]:
        parts.append(f"unused, though matching: {_names(unused)}")
    # State dicts of higher preference that match at least half of the model.
    nearly = [other for other in others if other.problems and 2 * len(other.state) >= len(target.expected)]
    if nearly := [other for other in nearly if _rank(other) < _rank(chosen)]:
        parts.append(f"unused, as not matching: {_names(nearly)}")
    if chosen.unprefixed:
        parts.append(f"unused, without the prefix: {_count(chosen.unprefixed)}")
    if chosen.ignored:
        parts.append(f"unused, not part of the features: {_count(chosen.ignored)}")
    if chosen.heads:
        parts.append(f"unused, the classifier: {'; '.join(grouped(chosen.heads))}")
    return "; ".join(parts)


def _names(attempts: Sequence[Attempt]) -> str:
    names = dict.fromkeys(attempt.where or "(top level)" for attempt in attempts)
    return ", ".join(f"`{name}`" for name in names)


def _count(keys: Sequence[str]) -> str:
    return f"{len(keys)} key{'s' if len(keys) != 1 else ''} ({count_by_prefix(keys, _depth(keys))})"


def _depth(keys: Sequence[str]) -> int:
    """The number of leading parts of a key, through the first part that differs between the keys."""
    parts = [key.split(".") for key in keys]
    depth = 0
    while all(len(split) > depth + 1 and split[depth] == parts[0][depth] for split in parts):
        depth += 1
    return depth + 1


def _mismatch(attempts: Sequence[Attempt], target: Target, path: str, name: str) -> str:
    """An error message with all unknown and missing keys of the closest state dict."""

    def distance(attempt: Attempt) -> tuple[bool, int, int]:
        """Sort key: most known keys first; but those whose prefix yields under half of the model come last."""
        known = len(attempt.state) + len(attempt.shapes)
        return bool(attempt.unprefixed) and 2 * known < len(target.expected), -known, -attempt.prefixed

    nearest = min(attempts, key=distance)
    where = f", `{nearest.where}`," if nearest.where else ""
    lines = [f"models: {path}{where} does not match {name}"]
    if not nearest.state and not nearest.shapes:
        lines[0] += f": none of its {nearest.prefixed} keys is among the model's {len(target.expected)}"
        if nearest.heads:
            lines[0] += "; it contains only a classifier" if not nearest.unknown else ""
    lines[0] += _origin(nearest)
    lines += [f"unknown: {text}" for text in grouped(nearest.unknown)]
    lines += [f"missing: {text}" for text in grouped(nearest.missing)]
    pairs: dict[tuple[str, str], list[str]] = {}
    for key, pair in nearest.shapes.items():
        pairs.setdefault(pair, []).append(key)
    for (expected, actual), keys in pairs.items():
        lines += [f"shape of {text}: expected {expected}, got {actual}" for text in grouped(keys)]
    lines += [f"without the prefix `{nearest.prefix}`: {text}" for text in grouped(nearest.unprefixed)]
    lines += _hints(nearest, target)
    if re.search(r"-\d+-of-\d+\.", path):
        lines.append("its name looks like a shard: merge all shards into one file")
    if others := sorted({attempt.container.name for attempt in attempts} - {nearest.container.name, ""}):
        lines.append(f"also tried: {', '.join(f'`{other}`' for other in others)}")
    return "\n      ".join(lines)


def _origin(nearest: Attempt) -> str:
    keys = list(nearest.container.tensors)
    library = next((library for mark, library in _LIBRARIES if any(mark in f"{key}." for key in keys)), None)
    return f" (its keys look like those of {library})" if library and len(nearest.state) < len(nearest.unknown) else ""


def _hints(nearest: Attempt, target: Target) -> list[str]:
    for key in nearest.shapes:
        value, expected = nearest.container.tensors.get(nearest.prefix + key), target.expected[key]
        if value is None or value.ndim != 4 or expected.ndim != 4 or value.shape[0] != expected.shape[0]:
            continue
        if value.shape[2:] == expected.shape[2:] and {value.shape[1], expected.shape[1]} == {1, 3}:
            return [f"{key} takes {value.shape[1]} channel(s): set kwargs: {{in_chans: {value.shape[1]}}}"]
    return []
