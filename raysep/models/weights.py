"""Weights of the user's own, loaded into a timm model: which of a file's were taken is said in one line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from raysep.errors import ConfigError
from raysep.models.checkpoint_files import read_checkpoint
from raysep.models.fitting import Attempt, Target
from raysep.models.key_groups import grouped, tops
from raysep.storage.uris import file_exists

# In which order sets that fit alike are taken: averages over steps as timm does, then self-distillation's teacher.
# What a pretext task puts beside the network it trains comes last.
_KINDS = (
    re.compile(r"(^|[^a-z])ema([^a-z]|$)|modelema|averaged"),
    re.compile(r"teacher"),
    re.compile(r""),
    re.compile(r"student|momentum|encoder_k|key_encoder|target|predictor|discriminator"),
)
# Within a kind timm prefers these, in this order.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What keys of other libraries have in them.
_LIBRARIES = (
    ("embeddings.patch_embeddings.", "transformers (Hugging Face)"),
    ("embeddings.class_embedding", "transformers (Hugging Face)"),
    ("encoder_layer_0.", "torchvision's vision transformer"),
    ("transformer.resblocks.", "OpenCLIP or CLIP"),
    (".ffn.layers.0.0.", "mmpretrain's vision transformer"),
    ("layer1.0.conv1.", "a ResNet"),
    ("features.denseblock1.", "torchvision's DenseNet"),
    ("features.0.0.", "torchvision's MobileNet, EfficientNet or ConvNeXt"),
    ("blocks.0.attn.qkv.", "a vision transformer as timm has it"),
    ("layers.0.blocks.0.attn.", "a Swin transformer"),
    ("stages.0.0.", "a network in stages (ConvNeXt, RegNet...)"),
    ("patch_embed.proj.", "a vision transformer"),
    ("conv_stem.", "an EfficientNet or MobileNet as timm has it"),
)


@dataclass(frozen=True)
class Loaded:
    """What was taken from a file.

    Attributes:
        sentence: container, prefix, and what was left out, with how many keys.
        pickled: the file is a pickle, not safetensors.
    """

    sentence: str
    pickled: bool


def load_weights(model: nn.Module, path: str, name: str) -> Loaded:
    """Load a safetensors file, or one of torch's of which nothing but tensors is used, in place.

    The weights may lie in any container (`state_dict`, `model_ema`, ...) and behind any prefix (`module.`, ...) without
    which they fit the model. Of several, an average over steps (EMA) comes first, as in timm, then a teacher, then
    what timm prefers; where that doesn't decide, none is taken. timm's own rules for the family rename keys of other
    origins and resample position embeddings; a first convolution of three channels is summed to one where the model
    takes grey images. The classifier is loaded where it fits and left out where not.

    Args:
        path: local path or URI.
        name: of the model, for messages.

    Raises:
        ConfigError: no such file, no weights in it, or none that fit: which keys are unknown and which are missing.
    """
    if not file_exists(path):
        raise ConfigError([f"models: {name}: no weights at {path} (pretrained: a file of weights, true or false)"])
    file = read_checkpoint(path, name)
    target = Target(model, name)
    attempts = [attempt for container in file.containers for attempt in target.attempts(container)]
    fitting = [attempt for attempt in attempts if not attempt.problems and attempt.state]
    if not fitting:
        raise ConfigError([_misfit(attempts, target, path, name)])
    chosen = _chosen(fitting, path, name)
    if broken := [key for key, value in chosen.state.items() if value.is_floating_point() and not _finite(value)]:
        raise ConfigError([f"models: {name}: {path} has NaN or infinity in {'; '.join(grouped(broken))}"])
    model.load_state_dict(chosen.state, strict=False)
    return Loaded(_sentence(chosen, attempts, target, path), file.pickled)


def _finite(value: torch.Tensor) -> bool:
    return bool(value.isfinite().all())


def _chosen(fitting: Sequence[Attempt], path: str, name: str) -> Attempt:
    """The set that comes first. Raises ConfigError where two different ones are equally good."""
    best = min(_rank(attempt) for attempt in fitting)
    first = [attempt for attempt in fitting if _rank(attempt) == best]
    # timm's rules may find the same tensors behind a prefix: the one that accounts for all keys is told.
    first.sort(key=lambda attempt: attempt.given - attempt.taken)
    if any(not _same(first[0], other) for other in first[1:]):
        which = ", ".join(f"`{attempt.where or '(the file itself)'}`" for attempt in first)
        raise ConfigError(
            [
                f"models: {name}: {path} holds several different sets of weights that fit: {which}. Which one is meant "
                "is not clear from their names: save that one's state dict alone, and give it"
            ]
        )
    return first[0]


def _rank(attempt: Attempt) -> tuple[int, int]:
    words = attempt.where.lower()
    kind = next(kind for kind in (0, 1, 3, 2) if _KINDS[kind].search(words))
    last = attempt.container.path[-1] if attempt.container.path else ""
    return kind, _CONTAINERS.index(last) if last in _CONTAINERS else len(_CONTAINERS)


def _same(one: Attempt, other: Attempt) -> bool:
    return one.state.keys() == other.state.keys() and all(
        torch.equal(value, other.state[key]) for key, value in one.state.items()
    )


def _sentence(chosen: Attempt, attempts: Sequence[Attempt], target: Target, path: str) -> str:
    container = f" in `{chosen.container.name}`" if chosen.container.path else ""
    prefix = f", without the prefix `{chosen.prefix}`" if chosen.prefix else ""
    parts = [f"{path}: {len(chosen.state)} tensors{container}{prefix}"]
    if chosen.taken < chosen.given:
        parts.append(f"timm's rules for {target.architecture} took {chosen.taken} of {chosen.given} keys")
    if chosen.summed:
        parts.append("the first convolution summed over 3 channels, for grey images")
    others = [other for other in attempts if other.where != chosen.where]
    # timm's rules may find the same tensors without that the prefix is taken off.
    if fitting := [other for other in others if other.state and not other.problems and not _same(chosen, other)]:
        parts.append(f"not taken, though they fit: {_names(fitting)}")
    # What would come first, and is nearly the model's.
    nearly = [other for other in others if other.problems and 2 * len(other.state) >= len(target.own)]
    if nearly := [other for other in nearly if _rank(other) < _rank(chosen)]:
        parts.append(f"not taken, since they don't fit: {_names(nearly)}")
    if chosen.beside:
        parts.append(f"left out beside the prefix: {_count(chosen.beside)}")
    if chosen.of_training:
        parts.append(f"left out, not part of the features: {_count(chosen.of_training)}")
    if chosen.heads:
        parts.append(f"left out, the classifier: {'; '.join(grouped(chosen.heads))}")
    return "; ".join(parts)


def _names(attempts: Sequence[Attempt]) -> str:
    names = dict.fromkeys(attempt.where or "the file itself" for attempt in attempts)
    return ", ".join(f"`{name}`" for name in names)


def _count(keys: Sequence[str]) -> str:
    return f"{len(keys)} key{'s' if len(keys) != 1 else ''} ({tops(keys, _depth(keys))})"


def _depth(keys: Sequence[str]) -> int:
    """At which part names begin to differ."""
    parts = [key.split(".") for key in keys]
    depth = 0
    while all(len(one) > depth + 1 and one[depth] == parts[0][depth] for one in parts):
        depth += 1
    return depth + 1


def _misfit(attempts: Sequence[Attempt], target: Target, path: str, name: str) -> str:
    """Why nothing fits: all unknown and all missing keys of the set that comes nearest."""

    def distance(attempt: Attempt) -> tuple[bool, int, int]:
        """A prefix behind which little of the model is found explains nothing: then all keys are unknown."""
        known = len(attempt.state) + len(attempt.shapes)
        return bool(attempt.beside) and 2 * known < len(target.own), -known, -attempt.given

    nearest = min(attempts, key=distance)
    where = f", `{nearest.where}` in it," if nearest.where else ""
    lines = [f"models: {path}{where} doesn't fit {name}"]
    if not nearest.state and not nearest.shapes:
        lines[0] += f": none of its {nearest.given} keys is one of the model's {len(target.own)}"
        if nearest.heads:
            lines[0] += "; it holds a classifier alone" if not nearest.unknown else ""
    lines[0] += _origin(nearest)
    lines += [f"unknown: {text}" for text in grouped(nearest.unknown)]
    lines += [f"missing: {text}" for text in grouped(nearest.missing)]
    pairs: dict[tuple[str, str], list[str]] = {}
    for key, pair in nearest.shapes.items():
        pairs.setdefault(pair, []).append(key)
    for (expected, came), keys in pairs.items():
        lines += [f"shape of {text}: expected {expected}, got {came}" for text in grouped(keys)]
    lines += [f"beside the prefix `{nearest.prefix}`: {text}" for text in grouped(nearest.beside)]
    lines += _hints(nearest, target)
    if re.search(r"-\d+-of-\d+\.", path):
        lines.append("by its name it is one of several files: join them into one, and give that")
    if others := sorted({attempt.container.name for attempt in attempts} - {nearest.container.name, ""}):
        lines.append(f"also tried: {', '.join(f'`{other}`' for other in others)}")
    return "\n      ".join(lines)


def _origin(nearest: Attempt) -> str:
    keys = list(nearest.container.tensors)
    found = next((library for mark, library in _LIBRARIES if any(mark in f"{key}." for key in keys)), None)
    return f" (its keys look like those of {found})" if found and len(nearest.state) < len(nearest.unknown) else ""


def _hints(nearest: Attempt, target: Target) -> list[str]:
    for key in nearest.shapes:
        value, expected = nearest.container.tensors.get(nearest.prefix + key), target.own[key]
        if value is None or value.ndim != 4 or expected.ndim != 4 or value.shape[0] != expected.shape[0]:
            continue
        if value.shape[2:] == expected.shape[2:] and {value.shape[1], expected.shape[1]} == {1, 3}:
            return [f"{key} takes {value.shape[1]} channel(s): set kwargs: {{in_chans: {value.shape[1]}}}"]
    return []
