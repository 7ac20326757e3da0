"""The forms of a model's name that timm takes: its own, on the Hugging Face hub, in a local directory."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models import get_deprecated_models, load_model_config_from_hf

from raysep.config.models import source_of
from raysep.errors import ConfigError

HUB, LOCAL = "hf-hub", "local-dir"
# Files of weights in a local directory, as timm looks for them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")


@dataclass(frozen=True)
class ModelName:
    """A name that has been looked up.

    Attributes:
        text: as `timm.create_model` takes it.
        architecture: timm's name of the network.
        has_weights: whether weights come with the name.
        fixed_input_size: whether the network is built for one size of images.
        directory: of config.json and weights, for `local-dir:`.
        renamed: what timm calls it now, where the name is an old one.
    """

    text: str
    architecture: str
    has_weights: bool
    fixed_input_size: bool
    directory: Path | None = None
    renamed: str | None = None


def look_up(name: str, cache_dir: str | None = None) -> ModelName:
    """What a name stands for.

    Args:
        name: `resnet18`, `resnet18.a1_in1k`, `hf-hub:owner/name`, `hf-hub:owner/name@revision` or
            `local-dir:path` of a directory with config.json.
        cache_dir: where files of the hub are kept; None: where huggingface_hub keeps them.

    Raises:
        ConfigError: an unknown name, with close matches; a hub or directory that can't be read.
    """
    source, identifier = source_of(name)
    if source == HUB and identifier:
        return _on_hub(name, f"{HUB}:{identifier}", identifier, cache_dir)
    if source == LOCAL and identifier:
        return _in_directory(name, Path(identifier).expanduser())
    if source or "/" in name or "\\" in name:
        forms = f"`resnet18`, `resnet18.a1_in1k`, `{HUB}:owner/name` or `{LOCAL}:path`"
        hint = f"; is `{HUB}:{identifier}` or `{LOCAL}:{identifier}` meant?" if identifier else ""
        raise ConfigError([f"models: unknown model {name!r}: expected {forms}{hint}"])
    return _of_timm(name)


def weights_in(directory: Path, name: str) -> Path:
    """The file of weights in a local directory, as timm looks for it. Raises ConfigError: there is none, or several."""
    for known in _WEIGHTS:
        if (directory / known).is_file():
            return directory / known
    for suffix in _SUFFIXES:
        found = sorted(file for file in directory.iterdir() if file.name.endswith(suffix) and file.is_file())
        if len(found) > 1:
            which = ", ".join(file.name for file in found)
            raise ConfigError([f"models: {name}: several files of weights ({which}): give one as `pretrained: path`"])
        if found:
            return found[0]
    raise ConfigError(
        [f"models: {name}: no weights in that directory (model.safetensors): `pretrained: false`, or a path to them"]
    )


def _of_timm(name: str) -> ModelName:
    base, dot, tag = name.partition(".")
    deprecated = get_deprecated_models()
    if base in deprecated:
        current = deprecated[base]
        if current is None:
            raise ConfigError([f"models: timm has removed {base} and has nothing in its place"])
        base, _, own_tag = current.partition(".")
        tag = tag or own_tag
        found = _of_timm(f"{base}.{tag}" if tag else base)
        return ModelName(found.text, found.architecture, found.has_weights, found.fixed_input_size, None, found.text)
    if not timm.is_model(base):
        close = difflib.get_close_matches(base.strip().lower(), timm.list_models(), n=4, cutoff=0.5)
        hint = f"; close to it: {', '.join(close)}" if close else "; see timm.list_models()"
        raise ConfigError([f"models: unknown model {name!r}{hint}"])
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:
        cfg = None
    if dot and (cfg is None or not tag):
        known = [one.partition(".")[2] for one in timm.list_pretrained(f"{base}.*")]
        raise ConfigError([f"models: {base} has no weights {tag!r}; there are {', '.join(known) or 'none'}"])
    fixed = bool(cfg is not None and cfg.fixed_input_size)
    return ModelName(name, base, timm.is_model_pretrained(name), fixed)


def _on_hub(given: str, text: str, identifier: str, cache_dir: str | None) -> ModelName:
    try:
        cfg, architecture, _ = load_model_config_from_hf(identifier, cache_dir=cache_dir)
        fixed = bool(cfg.get("fixed_input_size", False))
    except Exception as error:  # noqa: BLE001  (of the hub, or of what else lies in a repository, it may be anything)
        missing = isinstance(
            error, RepositoryNotFoundError | RevisionNotFoundError | EntryNotFoundError | HFValidationError
        )
        why = (
            "the Hugging Face hub has no model of timm by that name, or asks for a login"
            if (missing and not isinstance(error, LocalEntryNotFoundError)) or not isinstance(error, OSError)
            else "the Hugging Face hub can't be reached, and the model was not fetched before"
        )
        raise ConfigError(
            [
                f"models: {given}: {why}. Without a network, take `{LOCAL}:path` of a directory with its config.json "
                "and weights, or timm's own name and `pretrained: path`"
            ]
        ) from None
    return ModelName(text, _known(architecture, given), True, fixed)


def _in_directory(given: str, directory: Path) -> ModelName:
    file = directory / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        there = "that directory has no config.json" if directory.is_dir() else "there is no such directory"
        raise ConfigError(
            [f"models: {given}: {there} (expected config.json and weights, as timm saves them)"]
        ) from None
    except ValueError as error:
        raise ConfigError([f"models: {given}: config.json is not JSON ({error})"]) from None
    architecture = settings.get("architecture") if isinstance(settings, dict) else None
    if not isinstance(architecture, str):
        raise ConfigError([f"models: {given}: config.json has no key `architecture`, which names a model of timm"])
    cfg, arguments = settings.get("pretrained_cfg", settings), settings.get("model_args", {})
    if not isinstance(cfg, dict) or not isinstance(arguments, dict):
        raise ConfigError(
            [f"models: {given}: `pretrained_cfg` and `model_args` of config.json must hold keys and values"]
        )
    flexible = arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False
    fixed = bool(cfg.get("fixed_input_size", False)) and not flexible
    return ModelName(f"{LOCAL}:{directory}", _known(architecture, given), True, fixed, directory)


def _known(architecture: str, given: str) -> str:
    base = str(architecture).partition(".")[0]
    if not timm.is_model(base):
        raise ConfigError([f"models: {given}: its architecture {base!r} is none of timm {timm.__version__}"])
    return base
