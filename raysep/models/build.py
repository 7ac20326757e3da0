"""Build timm models with timm's or the user's weights, and derive their preprocessing."""

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean
from typing import Any, TypeVar

import timm
import torch
from timm.data.config import resolve_data_config
from torch import nn

from raysep.config import ModelConfig
from raysep.config.arguments import REFUSED
from raysep.data.images import Preprocessing
from raysep.errors import ConfigError, printable
from raysep.models.hub import captured_log, loader_remarks
from raysep.models.meta import PIXELS
from raysep.models.names import ModelName, look_up, weights_in
from raysep.models.pixels import Pixels
from raysep.models.weights import load_weights

T = TypeVar("T")


def create(config: ModelConfig, num_classes: int = 0, *, weights: bool = True) -> nn.Module:
    """Build a timm model with a classifier of `num_classes` outputs (0: no classifier).

    Args:
        config: name, arguments and weights of the model.
        num_classes: outputs; a pretrained classifier with another number is replaced by a random one.
        weights: False skips pretrained weights, if only the shapes matter.

    Raises:
        ConfigError: unknown name, invalid arguments, or unavailable weights.
    """
    if config.name == PIXELS:
        if not {"of", "kwargs", "edge"} <= config.kwargs.keys():
            raise ConfigError([f"models: {PIXELS} is a baseline that raysep adds itself: see baselines.pixels"])
        return Pixels(config.kwargs["edge"])
    name = look_up(config.name, config.kwargs.get("cache_dir"))
    path = _weights_path(config, name) if weights else None
    hub = weights and config.pretrained is True and path is None
    if hub and not name.has_weights:
        raise ConfigError(
            [f"models: {config.id}: timm has no weights for {name.text}: set `pretrained: false`, or a path to weights"]
        )
    arguments: dict[str, Any] = {"num_classes": num_classes, **config.kwargs}
    if config.image_size is not None and name.fixed_input_size:
        arguments.setdefault("img_size", config.image_size)
    try:
        with warnings.catch_warnings():
            # Deprecations in timm's own code are not for the user to fix.
            warnings.simplefilter("ignore")
            model: nn.Module = timm.create_model(name.text, pretrained=hub, **arguments)
    except Exception as error:
        raise ConfigError([_build_problem(error, config, name, hub)]) from error
    if path is not None:
        load_weights(model, path, config.name)
    return model


def check_weights(config: ModelConfig) -> list[str]:
    """Load the weights to check that they fit. Returns sentences about the loaded and the unused weights.

    Raises:
        ConfigError: as `create` does, or timm's weights leave parts of the network at their random initialisation.
    """
    if config.name == PIXELS:
        return []
    name = look_up(config.name, config.kwargs.get("cache_dir"))
    renamed = [f"{config.id}: timm has renamed this model to {name.renamed}"] if name.renamed else []
    if config.pretrained is False:
        return renamed
    path = _weights_path(config, name)
    if path is not None:
        loaded = load_weights(create(config, weights=False), path, config.name)
        pickled = "; it is a pickle, read without running its code, but safetensors is safer" if loaded.pickled else ""
        return [*renamed, f"{config.id}: weights of {loaded.sentence}{pickled}"]
    with captured_log() as texts:
        model = create(config)
    return [*renamed, *(f"{config.id}: {line}" for line in loader_remarks(texts, model, config))]


def on_meta(work: Callable[[], T]) -> T:
    """Call `work` on the meta device, where a network of any size takes milliseconds.

    Falls back to the default device for the few networks that need tensor values in construction or forward pass.
    """
    try:
        with torch.device("meta"):
            return work()
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001  (a real error occurs again without the meta device)
        pass
    return work()


def preprocessing_of(model: nn.Module, config: ModelConfig) -> Preprocessing:
    """The model's evaluation preprocessing, with the overrides of `config`.

    Three means and standard deviations are averaged for a model of one channel.

    Raises:
        ConfigError: the model has neither one nor three input channels.
    """
    if isinstance(model, Pixels):
        return _preprocessing_of_pixels(config)
    data: dict[str, Any] = resolve_data_config({"crop_pct": config.crop_pct}, model=model)
    channels, height, width = data["input_size"]
    channels = int(getattr(model, "in_chans", None) or channels)
    if channels not in (1, 3):
        raise ConfigError([f"models: {config.id} has {channels} input channels, expected 3 (RGB) or 1 (grey)"])
    return Preprocessing(
        size=config.input_size or (height, width),
        channels=channels,
        interpolation=data["interpolation"],
        mean=_of_channels(data["mean"], channels),
        std=_of_channels(data["std"], channels),
        crop_pct=data["crop_pct"],
        crop_mode=data.get("crop_mode") or "center",
    )


def _of_channels(values: Any, channels: int) -> tuple[float, ...]:
    """One value per channel: as given, or the mean of the given values repeated."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) == channels:
        return numbers
    return (numbers[0] if len(numbers) == 1 else fmean(numbers),) * channels


def _preprocessing_of_pixels(config: ModelConfig) -> Preprocessing:
    """The preprocessing of the network that the baseline belongs to, with pixels scaled to 0 to 1."""
    network = config.model_copy(update={"name": config.kwargs["of"], "kwargs": config.kwargs["kwargs"]})
    preprocessing = on_meta(lambda: preprocessing_of(create(network, weights=False), network))
    return replace(preprocessing, mean=(0.0,) * preprocessing.channels, std=(1.0,) * preprocessing.channels)


def _weights_path(config: ModelConfig, name: ModelName) -> str | None:
    """The weights file to load, or None if timm downloads the weights or there are none."""
    if isinstance(config.pretrained, str):
        return config.pretrained
    if config.pretrained and name.directory is not None:
        return str(weights_in(name.directory, config.name))
    return None


def _build_problem(error: Exception, config: ModelConfig, name: ModelName, hub: bool) -> str:
    """An error message for a model that timm could not build."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown or not hub:
        arguments = f" (kwargs: {', '.join(config.kwargs)})" if config.kwargs else ""
        reason = _unknown_argument(unknown.group(1), name) if unknown else one_line(error) + arguments
        return f"models: {config.id}: can't be built with these arguments: {reason}"
    if "state_dict" in str(error):
        arguments = f" (kwargs: {', '.join(config.kwargs)})" if config.kwargs else ""
        return f"models: {config.id}: timm's weights don't fit the network{arguments}: {one_line(error)}"
    return (
        f"models: {config.id}: timm can't download its weights: {one_line(error)}. Without a network, set a path: "
        "`pretrained: path/to/model.safetensors`, or `pretrained: false` to start from scratch"
    )


def _unknown_argument(argument: str, name: ModelName) -> str:
    """A message about an unknown argument, with the known arguments of the network's class."""
    with torch.device("meta"):
        kind = type(timm.create_model(name.architecture, pretrained=False))
    known = sorted(set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"} - set(REFUSED))
    if argument == "img_size":
        return f"{name.architecture} has no argument img_size, as it accepts any image size: set models[].image_size"
    close = difflib.get_close_matches(argument, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{name.architecture} has no argument {argument!r}{hint}; its arguments: {', '.join(known)}"


def one_line(error: BaseException) -> str:
    """The message of a library's error on one line, without paths of this machine, at most 300 characters."""
    text = re.sub(r"\w+\.__\w+__\(\)", "it", str(error))
    text = re.sub(r"[^\s'\"]*/site-packages/", "", text)
    text = printable(" ".join(text.split())).rstrip(".")
    if isinstance(error, KeyError):
        text = f"there is no {text}"
    text = text or "timm gives no reason"
    return text if len(text) < 300 else text[:297] + "..."


@contextmanager
def checked_forward(model: nn.Module, config: ModelConfig) -> Iterator[None]:
    """Convert errors of a forward pass to ConfigError, except on the meta device."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if any(parameter.is_meta for parameter in model.parameters()):
            # The network may need tensor values: `on_meta` falls back to the default device.
            raise
        default = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[1:]
        size = "x".join(str(edge) for edge in config.input_size or default)
        arguments = f", or models[].kwargs ({', '.join(config.kwargs)})" if config.kwargs else ""
        raise ConfigError(
            [f"models: {config.id} fails on images of {size}: {one_line(error)}. Set models[].image_size{arguments}"]
        ) from error
