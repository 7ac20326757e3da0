"""Matching of a checkpoint's state dicts, with and without key prefixes, against a model."""

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from raysep.models.checkpoint_files import Container

State = dict[str, torch.Tensor]
# Key prefixes of wrappers and training programs. Other prefixes are detected if the remaining keys match the model;
# these are also tried if timm must first rename the remaining keys.
WRAPPERS = frozenset(
    (
        *("module", "_orig_mod", "model", "backbone", "encoder", "network", "net", "student", "teacher", "ema"),
        *("base_encoder", "encoder_q", "trunk", "timm_model", "base_model", "ema_model", "online_network", "visual"),
        *("feature_extractor", "features_extractor", "vision_model", "classifier", "model_ema"),
    )
)
# Maximum number of prefixes tried per state dict, the likeliest first.
MAX_PREFIXES = 24
# Keys that do not affect the features: counters of weight averaging and profilers, heads of pretext tasks, auxiliary
# classifiers.
IRRELEVANT = re.compile(
    r"^(n_averaged|initted|step|mask_token|queue|queue_ptr|center|logit_scale|logit_bias|temperature"
    r"|(decoder|projector|projection|proj_head|predictor|prototypes|criterion|loss|aux_|AuxLogits|ema_)\w*(\..*)?)$"
    r"|(^|\.)(total_ops|total_params)$"
)
# Buffers that models compute themselves and some files omit.
DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table")


@dataclass
class Attempt:
    """The result of matching one state dict, without one prefix, against a model.

    Attributes:
        container, prefix: the state dict and the prefix.
        state: matching tensors, ready to load.
        prefixed: number of keys with the prefix.
        unprefixed: keys without the prefix.
        converted: number of keys after conversion of those with the prefix by timm's rules for the family.
        heads: keys of classifiers that do not match.
        ignored: keys that do not affect the features, or that the model computes itself.
        missing: keys of the model that the state dict lacks.
        unknown: keys of the state dict that the model lacks.
        shapes: expected and actual shape by mismatching key.
        summed: the first convolution's weights were summed over three channels, for grey images.
    """

    container: Container
    prefix: str
    state: State = field(default_factory=dict)
    prefixed: int = 0
    unprefixed: list[str] = field(default_factory=list)
    converted: int = 0
    heads: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[str, str]] = field(default_factory=dict)
    summed: bool = False

    @property
    def problems(self) -> int:
        """The number of keys that do not match."""
        return len(self.missing) + len(self.unknown) + len(self.shapes)

    @property
    def where(self) -> str:
        """The container's path and the prefix, joined by dots."""
        return ".".join(part for part in (self.container.name, self.prefix.rstrip(".")) if part)


class Target:
    """A model that state dicts are matched against.

    Args:
        model: a timm model, not on the meta device.
        name: architecture, if the model's config lacks it.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.expected: State = model.state_dict()
        cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        self.architecture = str(cfg.get("architecture") or name)
        self.heads = _classifiers(model, cfg)
        self._first = _names(cfg.get("first_conv"))

    def attempts(self, container: Container) -> Iterator[Attempt]:
        """Match a container against the model, once for each likely prefix, which is removed from the keys."""
        for prefix in _prefixes(container.tensors, self.expected):
            part = {
                key.removeprefix(prefix): value.float() if value.is_floating_point() else value
                for key, value in container.tensors.items()
                if key.startswith(prefix)
            }
            others = [key for key in container.tensors if not key.startswith(prefix)]
            candidates = []
            for state in (self._converted(part), part):
                if state is not None:
                    attempt = Attempt(container, prefix, prefixed=len(part), unprefixed=others, converted=len(state))
                    self._match(attempt, state)
                    candidates.append(attempt)
                    if not attempt.problems:
                        break
            yield min(candidates, key=lambda attempt: attempt.problems)

    def is_head(self, key: str) -> bool:
        """Whether a key belongs to the classifier."""
        return any(key.startswith(f"{head}.") for head in self.heads)

    def _match(self, attempt: Attempt, state: State) -> None:
        for key, value in state.items():
            expected = self.expected.get(key)
            if expected is not None and expected.shape == value.shape and _same_kind(expected, value):
                attempt.state[key] = value
            elif self.is_head(key):
                attempt.heads.append(key)
            elif expected is None:
                irrelevant = IRRELEVANT.search(key) or key.endswith(DERIVED)
                (attempt.ignored if irrelevant else attempt.unknown).append(key)
            elif (summed := self._summed(key, value)) is not None:
                attempt.state[key], attempt.summed = summed, True
            else:
                attempt.shapes[key] = _shape_text(expected), _shape_text(value)
        known = attempt.state.keys() | attempt.shapes.keys()
        attempt.missing = [
            key for key in self.expected if key not in known and not self.is_head(key) and not key.endswith(DERIVED)
        ]

    def _summed(self, key: str, value: torch.Tensor) -> torch.Tensor | None:
        """The first convolution's weights summed over 3 channels for grey images, as in timm; None if inapplicable."""
        expected = self.expected[key]
        if key not in {f"{name}.weight" for name in self._first} or expected.ndim != 4 or value.ndim != 4:
            return None
        if getattr(self.model, "in_chans", None) != 1 or value.shape[1] != 3 * expected.shape[1]:
            return None
        summed: torch.Tensor = adapt_input_conv(1, value)
        return summed if summed.shape == expected.shape else None

    def _converted(self, state: State) -> State | None:
        """Convert the keys of other libraries by timm's rules for the family; None if the rules fail or do not exist.

        The rules, defined in the module of each family, also resample position embeddings to the model's size.
        """
        try:
            module = vars(__import__(timm.model_entrypoint(self.architecture).__module__, fromlist=["_"]))
        except KeyError:
            return None
        for name in ("checkpoint_filter_fn", "_checkpoint_filter_fn", "_filter_torchvision_pretrained", "_filter_fn"):
            if name in module:
                rules = module[name]
                # Older rules take only the state dict.
                inputs = (dict(state), self.model)[: len(inspect.signature(rules).parameters)]
                try:
                    converted = rules(*inputs)
                except Exception:  # noqa: BLE001  (the rules may raise anything for unexpected keys)
                    return None
                valid = isinstance(converted, Mapping) and all(isinstance(v, torch.Tensor) for v in converted.values())
                return dict(converted) if valid else None
        return None


def _prefixes(tensors: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Likely key prefixes, sorted by the number of keys that match without them; "" is always included."""
    known = set(expected)
    matching: Counter[str] = Counter()
    wrapped: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for depth in range(len(parts)):
            start = "".join(f"{part}." for part in parts[:depth])
            if key.removeprefix(start) in known:
                matching[start] += 1
            if parts[depth] in WRAPPERS and all(part in WRAPPERS for part in parts[:depth]):
                wrapped[f"{start}{parts[depth]}."] += 1
    most = max(matching.values(), default=0)
    likely = [prefix for prefix, count in matching.most_common() if 2 * count >= most]
    if 2 * most < len(known):
        # No clear match: timm's rules may convert the keys of another library behind a wrapper's prefix.
        likely += [prefix for prefix, _ in wrapped.most_common()]
    return list(dict.fromkeys([*likely[:MAX_PREFIXES], ""]))


def _classifiers(model: nn.Module, cfg: Mapping[str, Any]) -> set[str]:
    """Module names of the classifiers, from timm's pretrained config and from the model itself."""
    names = set(_names(cfg.get("classifier")))
    classifier: Any = getattr(model, "get_classifier", lambda: None)()
    heads = classifier if isinstance(classifier, tuple | list) else [classifier]
    return names | {name for name, module in model.named_modules() if name and any(module is head for head in heads)}


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _same_kind(expected: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether both tensors are floats, or neither is: integers in place of floats are quantized weights."""
    return expected.is_floating_point() == value.is_floating_point() and not value.is_complex()


def _shape_text(value: torch.Tensor) -> str:
    kind = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
    return f"{list(value.shape)}{kind}"
