"""Which of a file's sets of tensors fit a model, without which prefix, and what is left over then."""

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
# Parts of names that wrappers and training programs put before a network's own. Any other that fits is found as well;
# these are tried also where timm still has to rename the keys behind them.
WRAPPERS = frozenset(
    (
        "module",
        "_orig_mod",
        "model",
        "backbone",
        "encoder",
        "network",
        "net",
        "student",
        "teacher",
        "base_encoder",
        "encoder_q",
        "trunk",
        "timm_model",
        "base_model",
        "ema",
        "ema_model",
        "online_network",
        "feature_extractor",
        "features_extractor",
        "visual",
        "vision_model",
        "classifier",
        "model_ema",
    )
)
# Prefixes that are tried for each set of tensors, the likeliest first.
MOST_PREFIXES = 24
# What stands beside a network's weights and takes no part in its features: figures of averaging and of profilers,
# what a training with a pretext task adds behind the network, or auxiliary classifiers.
OF_TRAINING = re.compile(
    r"^(n_averaged|initted|step|mask_token|queue|queue_ptr|center|logit_scale|logit_bias|temperature"
    r"|(decoder|projector|projection|proj_head|predictor|prototypes|criterion|loss|aux_|AuxLogits|ema_)\w*(\..*)?)$"
    r"|(^|\.)(total_ops|total_params)$"
)
# Buffers that models compute themselves and that some files leave out.
DERIVED = ("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table")


@dataclass
class Attempt:
    """One set of tensors held against a model.

    Attributes:
        container, prefix: which set.
        state: what would be loaded.
        given: keys that begin with the prefix.
        beside: keys that don't.
        taken: of `given`, how many are in what timm's rules for the family made of them.
        heads: keys of classifiers that don't fit.
        of_training: keys that take no part in features, or that the model computes itself.
        missing, unknown: keys of the model that are not there, and the other way round.
        shapes: by key, what was expected and what came.
        summed: whether the first convolution's three channels were made one.
    """

    container: Container
    prefix: str
    state: State = field(default_factory=dict)
    given: int = 0
    beside: list[str] = field(default_factory=list)
    taken: int = 0
    heads: list[str] = field(default_factory=list)
    of_training: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[str, str]] = field(default_factory=dict)
    summed: bool = False

    @property
    def problems(self) -> int:
        """Keys that don't fit."""
        return len(self.missing) + len(self.unknown) + len(self.shapes)

    @property
    def where(self) -> str:
        """The keys that lead there and the prefix, as one dotted name."""
        return ".".join(part for part in (self.container.name, self.prefix.rstrip(".")) if part)


class Target:
    """What a model needs.

    Args:
        model: a timm model, with values.
        name: of its architecture, where the model doesn't say so.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.own: State = model.state_dict()
        cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        self.architecture = str(cfg.get("architecture") or name)
        self.heads = _classifiers(model, cfg)
        self._first = _names(cfg.get("first_conv"))

    def attempts(self, container: Container) -> Iterator[Attempt]:
        """The container held against the model, without each prefix that it may have."""
        for prefix in _prefixes(container.tensors, self.own):
            part = {
                key.removeprefix(prefix): value.float() if value.is_floating_point() else value
                for key, value in container.tensors.items()
                if key.startswith(prefix)
            }
            beside = [key for key in container.tensors if not key.startswith(prefix)]
            found = []
            for state in (self._renamed(part), part):
                if state is not None:
                    attempt = Attempt(container, prefix, given=len(part), beside=beside, taken=len(state))
                    self._judge(attempt, state)
                    found.append(attempt)
                    if not attempt.problems:
                        break
            yield min(found, key=lambda attempt: attempt.problems)

    def is_head(self, key: str) -> bool:
        """Whether a key belongs to the classifier."""
        return any(key.startswith(f"{head}.") for head in self.heads)

    def _judge(self, attempt: Attempt, state: State) -> None:
        own = self.own
        for key, value in state.items():
            expected = own.get(key)
            if expected is not None and expected.shape == value.shape and _same_kind(expected, value):
                attempt.state[key] = value
            elif self.is_head(key):
                attempt.heads.append(key)
            elif expected is None:
                aside = OF_TRAINING.search(key) or key.endswith(DERIVED)
                (attempt.of_training if aside else attempt.unknown).append(key)
            elif (summed := self._summed(key, value)) is not None:
                attempt.state[key], attempt.summed = summed, True
            else:
                attempt.shapes[key] = _in_words(expected), _in_words(value)
        known = attempt.state.keys() | attempt.shapes.keys()
        attempt.missing = [
            key for key in own if key not in known and not self.is_head(key) and not key.endswith(DERIVED)
        ]

    def _summed(self, key: str, value: torch.Tensor) -> torch.Tensor | None:
        """The weights of a first convolution of three channels as those of one, as timm does it: their sum."""
        expected = self.own[key]
        if key not in {f"{name}.weight" for name in self._first} or expected.ndim != 4 or value.ndim != 4:
            return None
        if getattr(self.model, "in_chans", None) != 1 or value.shape[1] != 3 * expected.shape[1]:
            return None
        summed: torch.Tensor = adapt_input_conv(1, value)
        return summed if summed.shape == expected.shape else None

    def _renamed(self, state: State) -> State | None:
        """What timm's rules for the family make of keys of other origins; None where they can't read them.

        They also resample position embeddings to the model's size. Each family keeps them beside its constructor.
        """
        try:
            module = vars(__import__(timm.model_entrypoint(self.architecture).__module__, fromlist=["_"]))
        except KeyError:
            return None
        for name in ("checkpoint_filter_fn", "_checkpoint_filter_fn", "_filter_torchvision_pretrained", "_filter_fn"):
            if name in module:
                rules = module[name]
                # timm's own loader calls the older ones with the state dict alone.
                inputs = (dict(state), self.model)[: len(inspect.signature(rules).parameters)]
                try:
                    found = rules(*inputs)
                except Exception:  # noqa: BLE001  (of keys that it doesn't expect it may raise anything)
                    return None
                right = isinstance(found, Mapping) and all(isinstance(value, torch.Tensor) for value in found.values())
                return dict(found) if right else None
        return None


def _prefixes(tensors: Iterable[str], own: Iterable[str]) -> list[str]:
    """What may stand before the model's own keys, the likeliest first; "" is among them."""
    known = set(own)
    fitting: Counter[str] = Counter()
    wrapped: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for depth in range(len(parts)):
            start = "".join(f"{part}." for part in parts[:depth])
            if key.removeprefix(start) in known:
                fitting[start] += 1
            if parts[depth] in WRAPPERS and all(part in WRAPPERS for part in parts[:depth]):
                wrapped[f"{start}{parts[depth]}."] += 1
    most = max(fitting.values(), default=0)
    likely = [prefix for prefix, count in fitting.most_common() if 2 * count >= most]
    if 2 * most < len(known):
        # Nothing that is plain to see: keys of another origin, which timm's rules may know behind a wrapper.
        likely += [prefix for prefix, _ in wrapped.most_common()]
    return list(dict.fromkeys([*likely[:MOST_PREFIXES], ""]))


def _classifiers(model: nn.Module, cfg: Mapping[str, Any]) -> set[str]:
    """Names of the modules that end in classes: as timm's settings of the weights say, and as the model itself does."""
    names = set(_names(cfg.get("classifier")))
    classifier: Any = getattr(model, "get_classifier", lambda: None)()
    found = classifier if isinstance(classifier, tuple | list) else [classifier]
    return names | {name for name, module in model.named_modules() if name and any(module is one for one in found)}


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _same_kind(expected: torch.Tensor, value: torch.Tensor) -> bool:
    """Floats where floats belong: whole numbers in their place are quantized weights, whose scale is elsewhere."""
    return expected.is_floating_point() == value.is_floating_point() and not value.is_complex()


def _in_words(value: torch.Tensor) -> str:
    kind = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
    return f"{list(value.shape)}{kind}"
