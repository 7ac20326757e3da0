"""Build a timm model, with timm's weights or the user's own, and say how its images are prepared."""

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
from raysep.models.hub import heard, told_of_weights
from raysep.models.meta import PIXELS
from raysep.models.names import ModelName, look_up, weights_in
from raysep.models.pixels import Pixels
from raysep.models.weights import load_weights

T = TypeVar("T")


def create(config: ModelConfig, num_classes: int = 0, *, weights: bool = True) -> nn.Module:
    """A timm model with a classifier of `num_classes` outputs (none for 0).

    Args:
        config: which one, with which arguments.
        num_classes: outputs of the classifier, which always starts from scratch unless it fits.
        weights: False leaves out pretrained weights (the shapes are all that is asked for).

    Raises:
        ConfigError: unknown name, arguments that the model doesn't take, or weights that can't be had.
    """
    if config.name == PIXELS:
        if not {"of", "kwargs", "edge"} <= config.kwargs.keys():
            raise ConfigError([f"models: {PIXELS} is the baseline that raysep makes itself: see baselines.pixels"])
        return Pixels(config.kwargs["edge"])
    name = look_up(config.name, config.kwargs.get("cache_dir"))
    own = _own_weights(config, name) if weights else None
    hub = weights and config.pretrained is True and own is None
    if hub and not name.has_weights:
        raise ConfigError(
            [f"models: {config.id}: timm has no weights for {name.text}: `pretrained: false`, or a path to weights"]
        )
    arguments: dict[str, Any] = {"num_classes": num_classes, **config.kwargs}
    if config.image_size is not None and name.fixed_input_size:
        arguments.setdefault("img_size", config.image_size)
    try:
        with warnings.catch_warnings():
            # What a family says of its own code is not the user's to change.
            warnings.simplefilter("ignore")
            model: nn.Module = timm.create_model(name.text, pretrained=hub, **arguments)
    except Exception as error:
        raise ConfigError([_not_built(error, config, name, hub)]) from error
    if own is not None:
        load_weights(model, own, config.name)
    return model


def look_into_weights(config: ModelConfig) -> list[str]:
    """Load the weights once, to see that they fit. Returns lines that say which were taken and what was left out.

    Raises:
        ConfigError: as `create` does, or timm's weights leave parts of the network as they start.
    """
    if config.name == PIXELS:
        return []
    name = look_up(config.name, config.kwargs.get("cache_dir"))
    renamed = [f"{config.id}: timm calls this model {name.renamed} now"] if name.renamed else []
    if config.pretrained is False:
        return renamed
    own = _own_weights(config, name)
    if own is not None:
        loaded = load_weights(create(config, weights=False), own, config.name)
        pickled = "; a pickle, of which only tensors are read: safetensors is safer" if loaded.pickled else ""
        return [*renamed, f"{config.id}: weights of {loaded.sentence}{pickled}"]
    with heard() as told:
        model = create(config)
    return [*renamed, *(f"{config.id}: {line}" for line in told_of_weights(told, model, config))]


def on_meta(work: Callable[[], T]) -> T:
    """What `work` gives for tensors without values, which takes milliseconds for a network of any size.

    A few networks ask for values while they are built or passed through: then it is done once more with them.
    """
    try:
        with torch.device("meta"):
            return work()
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001  (whatever it raises, the second pass raises it as well where it is no such network)
        pass
    return work()


def preprocessing_of(model: nn.Module, config: ModelConfig) -> Preprocessing:
    """The model's own evaluation transform, with the configuration's changes.

    Where the model takes one channel and its settings have three means and deviations, these are averaged.

    Raises:
        ConfigError: the model takes images of other than one or three channels.
    """
    if isinstance(model, Pixels):
        return _preprocessing_of_pixels(config)
    data: dict[str, Any] = resolve_data_config({"crop_pct": config.crop_pct}, model=model)
    channels, height, width = data["input_size"]
    channels = int(getattr(model, "in_chans", None) or channels)
    if channels not in (1, 3):
        raise ConfigError(
            [f"models: {config.id} takes images of {channels} channels: images have 3 channels (RGB) or 1 (grey)"]
        )
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
    """One value a channel, of as many or of one, and one of three as their average."""
    found = tuple(float(value) for value in values)
    if len(found) == channels:
        return found
    return (found[0] if len(found) == 1 else fmean(found),) * channels


def _preprocessing_of_pixels(config: ModelConfig) -> Preprocessing:
    """Of the network that the baseline stands beside, with pixels left between 0 and 1."""
    network = config.model_copy(update={"name": config.kwargs["of"], "kwargs": config.kwargs["kwargs"]})
    own = on_meta(lambda: preprocessing_of(create(network, weights=False), network))
    return replace(own, mean=(0.0,) * own.channels, std=(1.0,) * own.channels)


def _own_weights(config: ModelConfig, name: ModelName) -> str | None:
    """The file that weights are read from, where it isn't timm that fetches them."""
    if isinstance(config.pretrained, str):
        return config.pretrained
    if config.pretrained and name.directory is not None:
        return str(weights_in(name.directory, config.name))
    return None


def _not_built(error: Exception, config: ModelConfig, name: ModelName, hub: bool) -> str:
    """Why timm did not build a model, in words."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown or not hub:
        given = f" (kwargs: {', '.join(config.kwargs)})" if config.kwargs else ""
        why = _unknown_argument(unknown.group(1), name) if unknown else in_words(error) + given
        return f"models: {config.id}: it can't be built with these arguments: {why}"
    if "state_dict" in str(error):
        arguments = f" (kwargs: {', '.join(config.kwargs)})" if config.kwargs else ""
        return f"models: {config.id}: timm's weights don't fit the network{arguments}: {in_words(error)}"
    return (
        f"models: {config.id}: its weights could not be fetched: {in_words(error)}. Without a network, give a path: "
        "`pretrained: path/to/model.safetensors`, or `pretrained: false` to start from scratch"
    )


def _unknown_argument(argument: str, name: ModelName) -> str:
    """The argument that isn't one, and those that the network's class takes."""
    with torch.device("meta"):
        kind = type(timm.create_model(name.architecture, pretrained=False))
    known = sorted(set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"} - set(REFUSED))
    if argument == "img_size":
        return f"{name.architecture} takes images of any size and no argument img_size: set models[].image_size"
    close = difflib.get_close_matches(argument, known, n=1)
    hint = f" (is {close[0]!r} meant?)" if close else ""
    return f"{name.architecture} takes no argument {argument!r}{hint}; it takes {', '.join(known)}"


def in_words(error: BaseException) -> str:
    """An error of a library's as part of a sentence, on one line."""
    text = re.sub(r"\w+\.__\w+__\(\)", "it", str(error))
    # Where a library lies on this machine says nothing to anybody.
    text = re.sub(r"[^\s'\"]*/site-packages/", "", text)
    text = printable(" ".join(text.split())).rstrip(".")
    if isinstance(error, KeyError):
        text = f"there is no {text}"
    text = text or "timm doesn't say why"
    return text if len(text) < 300 else text[:297] + "..."


@contextmanager
def passes(model: nn.Module, config: ModelConfig) -> Iterator[None]:
    """Turn what an argument or a size breaks in a forward pass into a ConfigError, but for tensors without values."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if any(parameter.is_meta for parameter in model.parameters()):
            # It may be for the lack of values.
            raise
        own = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[1:]
        size = "x".join(str(edge) for edge in config.input_size or own)
        arguments = f", or models[].kwargs ({', '.join(config.kwargs)})" if config.kwargs else ""
        raise ConfigError(
            [f"models: {config.id} can't take images of {size}: {in_words(error)}. Set models[].image_size{arguments}"]
        ) from error
