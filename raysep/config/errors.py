"""Turn pydantic's errors into messages in the terms of the configuration file."""

import difflib
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from raysep.config.data import SourceConfig, source_sections

# Current names of sections that were renamed.
RENAMED: dict[str | int, str] = {"metrics": "monitoring"}
Key = tuple[str | int, ...]
# Expected values, by pydantic's type of an error: its own messages mention classes of raysep and of Python.
EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "expected keys and values"),
    **dict.fromkeys(("list_type", "tuple_type"), "expected a list"),
    "string_type": "expected text",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    "string_pattern_mismatch": "expected letters, digits, '_', '.' and '-', beginning with a letter, digit or '_'",
    "missing": "field required",
}


def messages_of(errors: Sequence[Any], values: Any, root: type[BaseModel]) -> list[str]:
    """Messages of pydantic's errors, one line each: key, expected value, actual value.

    If a value fits none of several types, pydantic has an error for each; they become one line with all expected types.
    """
    lines: dict[str, list[str]] = {}
    depths: dict[Key, int] = {}
    located = []
    for item in errors:
        key, union = _key(item, values)
        located.append((item, key, union))
        depths[union] = max(depths.get(union, 0), len(key))
    for item, key, union in located:
        # An error deeper inside one type of a union is more specific than a mismatch of another type.
        if len(key) == depths[union]:
            where = ".".join(map(str, key)) or "configuration"
            lines.setdefault(where, []).append(_message(item, key, root))
    return [f"{where}: {_joined(messages)}" for where, messages in lines.items()]


def _key(item: Any, values: Any) -> tuple[Key, Key]:
    """The key of an error in the YAML, and the key of the innermost union that contains it.

    pydantic's location also contains the names of the types of unions, which the YAML doesn't have.
    """
    parts: list[str | int] = []
    union: Key | None = None
    inner = values
    for position, part in enumerate(item["loc"]):
        is_last = position + 1 == len(item["loc"])
        known = isinstance(inner, Mapping) and part in inner
        if known or (isinstance(inner, list | tuple) and isinstance(part, int) and part < len(inner)):
            inner = inner[part]
            parts.append(part)
        elif is_last and item["type"] == "missing":
            parts.append(part)
        elif union is None and not is_last:
            union = tuple(parts)
        elif is_last:
            union = tuple(parts) if union is None else union
    key = tuple(parts)
    return key, key if union is None else union


def _message(item: Any, key: Key, root: type[BaseModel]) -> str:
    """Expected and actual value of an error."""
    came, kind = item.get("input"), item["type"]
    if kind == "extra_forbidden":
        known = _keys_at(item["loc"][:-1], root)
        close = difflib.get_close_matches(str(key[-1]), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if key[-1] in RENAMED and RENAMED[key[-1]] in known:
            hint = f" It is called {RENAMED[key[-1]]!r} since format 2."
        return f"unknown key.{hint} The keys here are {', '.join(known)}."
    if kind == "union_tag_not_found":
        kinds = [tag for section in _sections_at(item["loc"], root) if (tag := _tag(section))]
        return f"expected the key `kind`, one of {', '.join(kinds)}"
    if kind == "union_tag_invalid":
        return f"expected the kind {item['ctx']['expected_tags']}, got {item['ctx']['tag']!r}"
    message: str = item["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ", 1)
    message = EXPECTED.get(kind, message[:1].lower() + message[1:])
    if kind in {"missing", "value_error"} or isinstance(came, Mapping | BaseModel):
        return message
    quotes = ": put it in quotes" if kind == "string_type" and not isinstance(came, list | None) else ""
    return f"{message}, got {_shown(came)}{quotes}"


def _joined(messages: Sequence[str]) -> str:
    """Join the messages of one value: `expected a list, or 'all', got 5`."""
    distinct = list(dict.fromkeys(messages))
    came = {message.rpartition(", got ")[1:] for message in distinct}
    if len(distinct) > 1 and len(came) == 1 and all(message.startswith("expected ") for message in distinct):
        expected = [message.rpartition(", got ")[0].removeprefix("expected ") for message in distinct]
        return f"expected {', or '.join(expected)}{''.join(came.pop())}"
    return "; ".join(distinct)


def _shown(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, str):
        return repr(value)
    try:
        text: str = yaml.safe_dump(value, default_flow_style=True)
    except yaml.YAMLError:
        # A Python object, such as a Path.
        return repr(value)
    return text.split("\n")[0]


def _keys_at(key: Key, root: type[BaseModel]) -> list[str]:
    """The valid keys of the section at a key."""
    return list(dict.fromkeys(name for section in _sections_at(key, root) for name in section.model_fields))


def _sections_at(key: Key, root: type[BaseModel]) -> list[type[BaseModel]]:
    """The possible sections at one of pydantic's keys."""
    sections: list[type[BaseModel]] = [root]
    for part in key:
        tagged = [section for section in sections if _tag(section) == part]
        if tagged:
            sections = tagged
        elif isinstance(part, str):
            fields = [section.model_fields[part] for section in sections if part in section.model_fields]
            sections = [section for field in fields for section in _sections(field.annotation)] or sections
    return sections


def _tag(section: type[BaseModel]) -> str | None:
    kind = section.model_fields.get("kind")
    return str(get_args(kind.annotation)[0]) if kind is not None else None


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if annotation is SourceConfig:
        return list(source_sections())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in {Union, UnionType, list} or hasattr(annotation, "__metadata__"):
        return [section for inner in get_args(annotation) for section in _sections(inner)]
    return []
