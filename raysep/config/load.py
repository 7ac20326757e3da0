"""Build a `RunConfig` from a YAML file, overrides or command line options.

An override `a.b.0.c=value` sets a key of the YAML by its path. The value is parsed as YAML: `[1, 2]`, `true`, `null`.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from raysep.config import RunConfig
from raysep.config.base import repeated
from raysep.config.errors import messages_of
from raysep.errors import ConfigError

Key = tuple[str | int, ...]
MOST_VALUES = 100_000
M = TypeVar("M", bound=BaseModel)

# Lists of class names, in which `007` and `yes` are text.
NAME_LISTS = (("split", "unseen"), ("split", "seen"))


def load_config(path: str, overrides: Sequence[str] = (), run_dir: str | None = None) -> RunConfig:
    """Read a configuration file and apply overrides.

    Raises:
        ConfigError: with all problems of the file and the overrides.
    """
    return build_with(read_yaml(path), overrides, run_dir, path)


def read_yaml(path: str) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values, written = yaml.safe_load(text), yaml.load(text, _AsWritten)
    except OSError as error:
        raise ConfigError([f"can't be read: {error.strerror or error}"], path) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([f"not YAML: {' '.join(str(error).split())}"], path) from None
    if not isinstance(values, dict):
        raise ConfigError([f"expected keys and values, got {type(values).__name__}"], path)
    if not _is_small(values):
        raise ConfigError([f"more than {MOST_VALUES} values with its aliases expanded, or a recursive alias"], path)
    named: dict[str, Any] = _with_names(values, written)
    return named


class _AsWritten(yaml.SafeLoader):
    """Loads all scalars as text. Refuses duplicate keys of a mapping, of which YAML would use only the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Check for duplicate keys, before the base class adds the keys of `<<` merges."""
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := repeated(key.value for key in scalars if not key.tag.endswith("merge")):
            raise yaml.constructor.ConstructorError(None, None, f"duplicate keys: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


for _tag in ("bool", "int", "float", "null", "timestamp"):
    _AsWritten.add_constructor(f"tag:yaml.org,2002:{_tag}", _text)


def _with_names(value: Any, written: Any, key: tuple[str, ...] = ()) -> Any:
    """A YAML value, with its class names as they are written in the file.

    Args:
        written: the same value with all scalars as text.
        key: path of the value in the configuration.
    """
    if key[-3:-1] in NAME_LISTS and isinstance(written, str):
        return written
    if isinstance(value, dict) and isinstance(written, dict):
        # Keys of overrides contain dots.
        return {k: _with_names(v, written.get(k), (*key, *str(k).split("."))) for k, v in value.items()}
    if isinstance(value, list) and isinstance(written, list):
        return [_with_names(v, w, (*key, str(n))) for n, (v, w) in enumerate(zip(value, written, strict=True))]
    return value


def _is_small(values: Any) -> bool:
    """Whether there are at most `MOST_VALUES`: ten lines with nested aliases can expand to billions of values."""
    pending, count = [values], 0
    while pending:
        value = pending.pop()
        count += 1
        if count + len(pending) > MOST_VALUES:
            return False
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return True


def config_of_options(
    model: str,
    weights: str | None,
    data: str,
    unseen: str | None,
    overrides: Sequence[str] = (),
    run_dir: str | None = None,
    *,
    has_unseen: bool = False,
) -> RunConfig:
    """The configuration of the run of one model on an image folder, from command line options instead of a file.

    Args:
        model: name of a timm model, evaluated without training.
        weights: path of a checkpoint; timm's own weights if unset.
        data: a directory with a subdirectory for each class.
        unseen: class names, separated by commas, in double quotes if a name contains commas; or `all`; unset: all, or
            the unseen classes of a directory that is already split into train, test and unseen.
        overrides, run_dir: as for `load_config`.
        has_unseen: the directory is already split.

    Raises:
        ConfigError: with all problems of the options and the overrides.
    """
    values: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "run",
        "data": {"source": {"kind": "image_folder", "path": data}},
        "models": [{"name": model, "pretrained": True if weights is None else weights}],
        "finetune": None,
    }
    if unseen is not None or not has_unseen:
        names = ["all"] if unseen is None else _listed(unseen)
        values["data"]["split"] = {"unseen": "all" if names == ["all"] else names}
    return build_with(values, overrides, run_dir, "options")


def _listed(names: str) -> list[str]:
    """Split names at commas, except within double quotes."""
    parts = [name.strip() for name in names.split(",")]
    if '"' in names:
        try:
            parts = next(csv.reader([names], skipinitialspace=True))
        except csv.Error as error:
            raise ConfigError([f"--unseen: {error}: use a file for names with newlines"], "options") from None
    if not any(parts):
        raise ConfigError(["--unseen: expected class names separated by commas, or all, got nothing"], "options")
    return [name for name in parts if name]


def build_with(values: dict[str, Any], overrides: Sequence[str], run_dir: str | None, source: str) -> RunConfig:
    """Build a `RunConfig` from values, which overrides change in place. Raises ConfigError with all problems."""
    for override in overrides:
        apply(values, override)
    if run_dir is not None:
        values["run_dir"] = run_dir
    return build_config(values, source)


def build_config(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Build a `RunConfig` from plain values. Raises ConfigError with all problems."""
    return validated(RunConfig, values, source)


def validated(kind: type[M], values: Mapping[str, Any], source: str) -> M:
    """Validate plain values as a pydantic model. Raises ConfigError with all problems."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(messages_of(error.errors(), values, kind), source) from None


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML, with all defaults, which `load_config` can read."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences of two resolved configurations, one line each: `key: old -> new`."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    missing = object()

    def show(value: Any) -> str:
        return "(unset)" if value is missing else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]

    return [
        f"{'.'.join(map(str, key))}: {show(before.get(key, missing))} -> {show(after.get(key, missing))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, missing) != after.get(key, missing)
    ]


def _leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*key, name))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*key, index))
    else:
        yield key, value


def apply(values: dict[str, Any], override: str) -> None:
    """Set the key of `key=value` in place. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError([f"expected key=value, as in models.0.name=resnet18; got {override!r}"], "override")
    try:
        value = _with_names({key: yaml.safe_load(text)}, {key: yaml.load(text, _AsWritten)})[key]
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([f"{override}: the value is not YAML: {' '.join(str(error).split())}"], "override") from None
    put(values, key, value)


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place. Raises ConfigError if a list of the file lacks the item, or a value has no keys."""
    node: Any = values
    parts = key.split(".")
    for depth, part in enumerate(parts):
        where, last = ".".join(parts[:depth]) or "the configuration", depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise ConfigError([f"{key}: {where} has the items 0 to {len(node) - 1}, not {part!r}"], "override")
            if last:
                node[int(part)] = value
            else:
                node = node[int(part)]
        elif isinstance(node, dict):
            if last:
                node[part] = value
            else:
                # Create a section that is missing or null in the file.
                node[part] = {} if node.get(part) is None else node[part]
                node = node[part]
        else:
            raise ConfigError([f"{key}: {where} is the value {node!r}, it has no keys"], "override")
