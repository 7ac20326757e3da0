"""From a YAML file and overrides to a `RunConfig`, and from its errors to words.

`a.b.0.c=value` sets the key that the YAML calls so; the value is read as YAML, so `[1, 2]`, `true` and
`null` mean what they mean there.
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
from raysep.config.errors import in_words
from raysep.errors import ConfigError

Key = tuple[str | int, ...]
MOST_VALUES = 100_000
M = TypeVar("M", bound=BaseModel)

# Lists of class names: `007` and `yes` in them are text.
NAME_LISTS = (("split", "unseen"), ("split", "seen"))


def load_config(path: str, overrides: Sequence[str] = (), run_dir: str | None = None) -> RunConfig:
    """Read a configuration file and apply overrides.

    Raises:
        ConfigError: with every problem of the file and the overrides at once.
    """
    return _build(read_yaml(path), overrides, run_dir, path)


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
        raise ConfigError([f"more than {MOST_VALUES} values once its aliases are followed, or one within itself"], path)
    found: dict[str, Any] = _with_names(values, written)
    return found


class _AsWritten(yaml.SafeLoader):
    """YAML with all scalars as text. A key that comes twice in a mapping is refused: only the last one would count."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As the base class does, with a look at the keys before those of merges are among them."""
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := repeated(key.value for key in scalars if not key.tag.endswith("merge")):
            raise yaml.constructor.ConstructorError(
                None, None, f"a key comes twice: {', '.join(twice)}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


for _tag in ("bool", "int", "float", "null", "timestamp"):
    _AsWritten.add_constructor(f"tag:yaml.org,2002:{_tag}", _text)


def _with_names(value: Any, written: Any, key: tuple[str, ...] = ()) -> Any:
    """A value of YAML, with the class names in it as they are written.

    Args:
        written: the same value with all scalars as text.
        key: where it is.
    """
    if key[-3:-1] in NAME_LISTS and isinstance(written, str):
        return written
    if isinstance(value, dict) and isinstance(written, dict):
        # Keys of overrides have dots in them.
        return {k: _with_names(v, written.get(k), (*key, *str(k).split("."))) for k, v in value.items()}
    if isinstance(value, list) and isinstance(written, list):
        return [_with_names(v, w, (*key, str(n))) for n, (v, w) in enumerate(zip(value, written, strict=True))]
    return value


def _is_small(values: Any) -> bool:
    """Whether there are few enough values: aliases of aliases make billions of them out of ten lines."""
    left, seen = [values], 0
    while left:
        value = left.pop()
        seen += 1
        if seen + len(left) > MOST_VALUES:
            return False
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list):
            left += value
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
    """The run that answers the usual question without a file: my checkpoint, a folder of new classes, which layer?

    Args:
        model: name of a timm model, evaluated as it is.
        weights: a safetensors file; timm's own weights if unset.
        data: a directory of a directory for each class.
        unseen: class names with commas between them, in double quotes those that have commas; or `all`; unset: all, or
            what the directory says itself where it is split into train, test and unseen.
        overrides, run_dir: as for `load_config`.
        has_unseen: the directory itself is split, and names its unseen classes.

    Raises:
        ConfigError: with every problem of the options and the overrides at once.
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
    return _build(values, overrides, run_dir, "options")


def _listed(names: str) -> list[str]:
    """Names with commas between them. In double quotes a name may have commas and blanks of its own."""
    found = [name.strip() for name in names.split(",")]
    if '"' in names:
        try:
            found = next(csv.reader([names], skipinitialspace=True))
        except csv.Error as error:
            raise ConfigError([f"--unseen: {error}: give names with newlines in a file"], "options") from None
    if not any(found):
        raise ConfigError(["--unseen: expected class names with commas between them, or all, got nothing"], "options")
    return [name for name in found if name]


def _build(values: dict[str, Any], overrides: Sequence[str], run_dir: str | None, source: str) -> RunConfig:
    for override in overrides:
        apply(values, override)
    if run_dir is not None:
        values["run_dir"] = run_dir
    return build_config(values, source)


def build_config(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Validate plain values. Raises ConfigError with all problems at once."""
    return validated(RunConfig, values, source)


def validated(kind: type[M], values: Mapping[str, Any], source: str) -> M:
    """Values as a model of a configuration. Raises ConfigError with all problems at once."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(in_words(error.errors(), values, kind), source) from None


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration, each default written out, in a form that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two resolved configurations: `key: old -> new`, one line each."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    missing = object()

    def show(value: Any) -> str:
        return "(not there)" if value is missing else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]

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
    """Set a dotted key in place. Raises ConfigError where it leads nowhere."""
    place: Any = values
    parts = key.split(".")
    for depth, part in enumerate(parts):
        where, last = ".".join(parts[:depth]) or "the configuration", depth == len(parts) - 1
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise ConfigError([f"{key}: {where} has the items 0 to {len(place) - 1}, not {part!r}"], "override")
            if last:
                place[int(part)] = value
            else:
                place = place[int(part)]
        elif isinstance(place, dict):
            if last:
                place[part] = value
            else:
                # A section that the file leaves out, or says null for, begins here.
                place[part] = {} if place.get(part) is None else place[part]
                place = place[part]
        else:
            raise ConfigError([f"{key}: {where} is the value {place!r}, it has no keys"], "override")
