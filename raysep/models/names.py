"""Resolution of model names: timm's own, on the Hugging Face hub, or in a local directory."""

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
# Weights files of a local directory, in timm's order of preference.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")


@dataclass(frozen=True)
class ModelName:
    """A resolved model name.

    Attributes:
        text: argument for `timm.create_model`.
        architecture: timm's name of the network.
        has_weights: the name comes with pretrained weights.
        fixed_input_size: the network is built for one image size.
        directory: directory of config.json and weights, for `local-dir:`.
        renamed: the current name, if timm has renamed the model.
    """

    text: str
    architecture: str
    has_weights: bool
    fixed_input_size: bool
    directory: Path | None = None
    renamed: str | None = None


def look_up(name: str, cache_dir: str | None = None) -> ModelName:
    """Resolve a model name.

    Args:
        name: `resnet18`, `resnet18.a1_in1k`, `hf-hub:owner/name`, `hf-hub:owner/name@revision` or
            `local-dir:path` of a directory with config.json.
        cache_dir: for files of the hub; None: the default of huggingface_hub.

    Raises:
        ConfigError: unknown name (with close matches), or an unreachable hub or unreadable directory.
    """
    source, identifier = source_of(name)
    if source == HUB and identifier:
        return _on_hub(name, f"{HUB}:{identifier}", identifier, cache_dir)
    if source == LOCAL and identifier:
        return _in_directory(name, Path(identifier).expanduser())
    if source or "/" in name or "\\" in name:
        forms = f"`resnet18`, `resnet18.a1_in1k`, `{HUB}:owner/name` or `{LOCAL}:path`"
        hint = f"; did you mean `{HUB}:{identifier}` or `{LOCAL}:{identifier}`?" if identifier else ""
        raise ConfigError([f"models: unknown model {name!r}: expected {forms}{hint}"])
    return _of_timm(name)


def weights_in(directory: Path, name: str) -> Path:
    """The weights file that timm would load from a local directory. Raises ConfigError if there is none or several."""
    for known in _WEIGHTS:
        if (directory / known).is_file():
            return directory / known
    for suffix in _SUFFIXES:
        matches = sorted(file for file in directory.iterdir() if file.name.endswith(suffix) and file.is_file())
        if len(matches) > 1:
            files = ", ".join(file.name for file in matches)
            raise ConfigError([f"models: {name}: several weights files ({files}): set `pretrained` to the path of one"])
        if matches:
            return matches[0]
    raise ConfigError(
        [f"models: {name}: no weights in this directory (model.safetensors): set `pretrained: false`, or a path"]
    )


def _of_timm(name: str) -> ModelName:
    base, dot, tag = name.partition(".")
    deprecated = get_deprecated_models()
    if base in deprecated:
        current = deprecated[base]
        if current is None:
            raise ConfigError([f"models: timm has removed {base} without a replacement"])
        base, _, current_tag = current.partition(".")
        tag = tag or current_tag
        new = _of_timm(f"{base}.{tag}" if tag else base)
        return ModelName(new.text, new.architecture, new.has_weights, new.fixed_input_size, None, new.text)
    if not timm.is_model(base):
        close = difflib.get_close_matches(base.strip().lower(), timm.list_models(), n=4, cutoff=0.5)
        hint = f"; close matches: {', '.join(close)}" if close else "; see timm.list_models()"
        raise ConfigError([f"models: unknown model {name!r}{hint}"])
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:
        cfg = None
    if dot and (cfg is None or not tag):
        known = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
        raise ConfigError([f"models: {base} has no weights {tag!r}; there are {', '.join(known) or 'none'}"])
    fixed = bool(cfg is not None and cfg.fixed_input_size)
    return ModelName(name, base, timm.is_model_pretrained(name), fixed)


def _on_hub(given: str, text: str, identifier: str, cache_dir: str | None) -> ModelName:
    try:
        cfg, architecture, _ = load_model_config_from_hf(identifier, cache_dir=cache_dir)
        fixed = bool(cfg.get("fixed_input_size", False))
    except Exception as error:  # noqa: BLE001  (the hub, or other files in a repository, may raise anything)
        missing = isinstance(
            error, RepositoryNotFoundError | RevisionNotFoundError | EntryNotFoundError | HFValidationError
        )
        reason = (
            "the Hugging Face hub has no timm model of this name, or requires a login"
            if (missing and not isinstance(error, LocalEntryNotFoundError)) or not isinstance(error, OSError)
            else "the Hugging Face hub is unreachable, and the model is not in its local cache"
        )
        raise ConfigError(
            [
                f"models: {given}: {reason}. Without a network, use `{LOCAL}:path` of a directory with config.json and "
                "weights, or timm's name and `pretrained: path`"
            ]
        ) from None
    return ModelName(text, _known(architecture, given), True, fixed)


def _in_directory(given: str, directory: Path) -> ModelName:
    file = directory / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        reason = "this directory has no config.json" if directory.is_dir() else "no such directory"
        raise ConfigError(
            [f"models: {given}: {reason} (expected config.json and weights, as timm saves them)"]
        ) from None
    except ValueError as error:
        raise ConfigError([f"models: {given}: config.json is not JSON ({error})"]) from None
    architecture = settings.get("architecture") if isinstance(settings, dict) else None
    if not isinstance(architecture, str):
        raise ConfigError([f"models: {given}: config.json lacks the key `architecture`, the name of a timm model"])
    cfg, arguments = settings.get("pretrained_cfg", settings), settings.get("model_args", {})
    if not isinstance(cfg, dict) or not isinstance(arguments, dict):
        raise ConfigError([f"models: {given}: `pretrained_cfg` and `model_args` in config.json must be objects"])
    flexible = arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False
    fixed = bool(cfg.get("fixed_input_size", False)) and not flexible
    return ModelName(f"{LOCAL}:{directory}", _known(architecture, given), True, fixed, directory)


def _known(architecture: str, given: str) -> str:
    base = str(architecture).partition(".")[0]
    if not timm.is_model(base):
        raise ConfigError([f"models: {given}: timm {timm.__version__} has no architecture {base!r}"])
    return base
