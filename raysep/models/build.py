"""Build a timm model, and load weights of the user's own into it."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from timm.data.config import resolve_data_config
from torch import nn

from raysep.config import ModelConfig
from raysep.data.images import Preprocessing
from raysep.errors import ConfigError
from raysep.models.meta import PIXELS, is_pickle
from raysep.models.pickles import unpickled
from raysep.models.pixels import Pixels
from raysep.places import place_exists, read_place
from raysep.storage import is_uri


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
        return Pixels(config.kwargs["edge"])
    check_name(config.name)
    arguments: dict[str, Any] = {"num_classes": num_classes, **config.kwargs}
    cfg = timm.get_pretrained_cfg(config.name)
    if config.image_size is not None and cfg is not None and cfg.fixed_input_size:
        arguments.setdefault("img_size", config.image_size)
    hub = weights and config.pretrained is True
    try:
        model: nn.Module = timm.create_model(config.name, pretrained=hub, **arguments)
    except Exception as error:
        what = "its weights could not be fetched" if hub else "it can't be built with these arguments"
        problem = f"models: {config.id}: {what}: {type(error).__name__}: {_short(error)}"
        if hub:
            problem += (
                ". Without a network, give a path: `pretrained: path/to/model.safetensors`,"
                " or `pretrained: false` to start from scratch"
            )
        raise ConfigError([problem]) from error
    if weights and isinstance(config.pretrained, str):
        load_weights(model, config.pretrained, config.name)
    return model


def check_name(name: str) -> None:
    """Raise ConfigError, with close matches, for a name that timm doesn't know."""
    base, _, tag = name.partition(".")
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=4, cutoff=0.5)
        hint = f"; close to it: {', '.join(close)}" if close else "; see timm.list_models()"
        raise ConfigError([f"models: unknown model {name!r}{hint}"])
    if tag and not timm.is_model_pretrained(name):
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
        raise ConfigError([f"models: {base} has no weights {tag!r}; there are {', '.join(tags) or 'none'}"])


def preprocessing_of(model: nn.Module, config: ModelConfig) -> Preprocessing:
    """The model's own evaluation transform, with the configuration's changes."""
    if isinstance(model, Pixels):
        return _preprocessing_of_pixels(config)
    size = {} if config.image_size is None else {"img_size": config.image_size}
    data: dict[str, Any] = resolve_data_config({**size, "crop_pct": config.crop_pct}, model=model)
    channels, height, width = data["input_size"]
    return Preprocessing(
        size=(height, width),
        channels=channels,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_pct=data["crop_pct"],
        crop_mode=data.get("crop_mode") or "center",
    )


def _preprocessing_of_pixels(config: ModelConfig) -> Preprocessing:
    """Of the network that the baseline stands beside, with pixels left between 0 and 1."""
    network = config.model_copy(update={"name": config.kwargs["of"], "kwargs": config.kwargs["kwargs"]})
    with torch.device("meta"):
        own = preprocessing_of(create(network, weights=False), network)
    return replace(own, mean=(0.0,) * own.channels, std=(1.0,) * own.channels)


def load_weights(model: nn.Module, path: str, name: str) -> None:
    """Load a state dict in place: a safetensors file, or one of torch's, of which nothing but tensors is unpickled.

    timm's own filter for the family runs first: it renames keys of other origins and resamples position
    embeddings to the model's size. The classifier is loaded where it fits and left out where not.

    Raises:
        ConfigError: no such file, no safetensors, or keys that don't fit, by name.
    """
    if not place_exists(path):
        raise ConfigError([f"models: {name}: no weights at {path} (pretrained: a safetensors file, true or false)"])
    found = _read_pickle(path, name) if is_pickle(path) else _read_safetensors(path, name)
    if broken := [key for key, value in found.items() if value.is_floating_point() and not value.isfinite().all()]:
        which = ", ".join(broken[:4]) + (f" and {len(broken) - 4} more" if len(broken) > 4 else "")
        raise ConfigError([f"models: {name}: {path} has NaN or infinity in {which}"])
    own = model.state_dict()
    state = {key: value.float() if value.is_floating_point() else value for key, value in found.items()}
    state = _family_filter(name, state, model)
    heads = _classifier_names(model)

    def is_head(key: str) -> bool:
        return any(key.startswith(f"{head}.") for head in heads)

    state = {
        key: value
        for key, value in state.items()
        if not (is_head(key) and (key not in own or own[key].shape != value.shape))
    }
    problems = [f"missing: {key}" for key in own if key not in state and not is_head(key) and not _derived(key)]
    problems += [f"unknown: {key}" for key in state if key not in own]
    problems += [
        f"shape of {key}: expected {list(own[key].shape)}, got {list(value.shape)}"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ConfigError([f"models: {path} doesn't fit {name}: {shown}"])
    model.load_state_dict(state, strict=False)


def _read_safetensors(path: str, name: str) -> dict[str, torch.Tensor]:
    try:
        return load(read_place(path)) if is_uri(path) else load_file(Path(path).expanduser())
    except SafetensorError as error:
        raise ConfigError([f"models: {name}: {path} is not a whole safetensors file ({error})"]) from None


def _read_pickle(path: str, name: str) -> dict[str, torch.Tensor]:
    try:
        found = unpickled(read_place(path))
    except ValueError as error:
        raise ConfigError([f"models: {name}: {path} holds no state dict and nothing else ({_short(error)})"]) from None
    # Training programs keep the weights beside other things.
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ConfigError([f"models: {name}: {path} is not a state dict: names and tensors"])
    return found


def _family_filter(name: str, state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """timm keeps each family's state dict filter beside its constructor, under one of two names."""
    module = vars(__import__(timm.model_entrypoint(name.partition(".")[0]).__module__, fromlist=["_"]))
    for attribute in ("checkpoint_filter_fn", "_checkpoint_filter_fn"):
        if attribute in module:
            filtered: dict[str, torch.Tensor] = module[attribute](state, model)
            return filtered
    return state


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _derived(key: str) -> bool:
    """Buffers that models compute themselves and that some files leave out."""
    return key.endswith(("num_batches_tracked", "relative_position_index", "attn_mask", "relative_coords_table"))


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text.rstrip(".") if len(text) < 300 else text[:297] + "..."
