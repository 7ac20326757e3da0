"""From a YAML file and overrides to a `RunConfig`, and from its errors to words.

`a.b.0.c=value` sets the key that the YAML calls so; the value is read as YAML, so `[1, 2]`, `true` and
`null` mean what they mean there.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from raysep.config import RunConfig
from raysep.errors import ConfigError

Key = tuple[str | int, ...]
MOST_VALUES = 100_000
M = TypeVar("M", bound=BaseModel)

# How pydantic calls the members of the unions in `config/`.
UNION_TAGS = {"number", "grid", "space", "digits", "image_folder", "parquet", "huggingface", "cifar100"}


def load_config(path: str, overrides: Sequence[str] = (), run_dir: str | None = None) -> RunConfig:
    """Read a configuration file and apply overrides.

    Raises:
        ConfigError: with every problem of the file and the overrides at once.
    """
    return _build(read_yaml(path), overrides, run_dir, path)


def read_yaml(path: str) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ConfigError."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"can't be read: {error.strerror or error}"], path) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([f"not YAML: {' '.join(str(error).split())}"], path) from None
    if not isinstance(values, dict):
        raise ConfigError([f"expected keys and values, got {type(values).__name__}"], path)
    if not _is_small(values):
        raise ConfigError([f"more than {MOST_VALUES} values once its aliases are followed, or one within itself"], path)
    return values


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
) -> RunConfig:
    """The run that answers the usual question without a file: my checkpoint, a folder of new classes, which layer?

    Args:
        model: name of a timm model, evaluated as it is.
        weights: a safetensors file; timm's own weights if unset.
        data: a directory of a directory for each class.
        unseen: class names with commas between them, or `all`; unset: all, or what the directory says itself
            where it is split into train, test and unseen.
        overrides, run_dir: as for `load_config`.

    Raises:
        ConfigError: with every problem of the options and the overrides at once.
    """
    values: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "run",
        "data": {"source": {"kind": "image_folder", "path": data}},
        "models": [{"name": model, "pretrained": True if weights is None else weights}],
        "finetune": None,
    }
    from raysep.data.parts import has_unseen_part

    if unseen is not None or not has_unseen_part(data):
        names = [name.strip() for name in (unseen or "all").split(",") if name.strip()]
        values["data"]["split"] = {"unseen": "all" if names == ["all"] else names}
    return _build(values, overrides, run_dir, "options")


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
        raise ConfigError([_in_words(item, kind) for item in error.errors()], source) from None


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
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
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


def _in_words(item: Any, root: type[BaseModel]) -> str:
    """One pydantic error as a line: where, what was expected, what came."""
    place: Key = item["loc"]
    where = ".".join(str(part) for part in _without_tags(place)) or "configuration"
    if item["type"] == "extra_forbidden":
        known = _keys_at(place[:-1], root)
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key.{hint} The keys here are {', '.join(known)}."
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    came = item.get("input")
    if item["type"] in {"missing", "value_error", "union_tag_invalid"} or isinstance(came, Mapping | BaseModel):
        return f"{where}: {message}"
    return f"{where}: {message}, got {came!r}"


def _without_tags(place: Key) -> Key:
    """A path as the YAML has it: pydantic names the chosen member of a union in between."""
    return tuple(part for part in place if part not in UNION_TAGS)


def _keys_at(place: Key, root: type[BaseModel]) -> list[str]:
    """The valid keys of the section at a place."""
    sections: list[type[BaseModel]] = [root]
    for part in place:
        if part in UNION_TAGS:
            sections = [s for s in sections if _tag(s) in {part, None}]
        elif isinstance(part, str):
            fields = [section.model_fields[part] for section in sections if part in section.model_fields]
            sections = [found for field in fields for found in _sections(field.annotation)]
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _tag(section: type[BaseModel]) -> str | None:
    kind = section.model_fields.get("kind")
    return str(get_args(kind.annotation)[0]) if kind is not None else None


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in {Union, UnionType, list} or hasattr(annotation, "__metadata__"):
        return [found for inner in get_args(annotation) for found in _sections(inner)]
    return []
