"""References in Markdown, from the schema and the registries: `python -m raysep.config.reference` prints them."""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from raysep.config.data import source_sections
from raysep.config.registry import METRICS
from raysep.config.run import RunConfig

HEAD = ("| key | type | default | meaning |", "|---|---|---|---|")
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
TYPES = {"string": "text", "integer": "whole number", "boolean": "true, false", "object": "mapping"}
# The description says what a longer default is.
LONGEST_DEFAULT = 40
Schema = dict[str, Any]


def reference() -> str:
    """Tables of the sections of a run, and of each kind of source."""
    parts = ["### A run", "", table(RunConfig)]
    for section in sorted(source_sections(), key=lambda section: str(section.model_fields["kind"].default)):
        kind = section.model_fields["kind"].default
        first = (section.__doc__ or "").strip().splitlines()[0]
        keys = table(section, "data.source.") if len(section.model_fields) > 1 else "No keys besides `kind`."
        parts += ["", f"### `data.source: {{kind: {kind}}}`", "", first, "", keys]
    return "\n".join(parts) + "\n"


def metrics() -> str:
    """A row for each metric of this package."""
    rows = ["| metric | range | each class needs | protocols | meaning |", "|---|---|---|---|---|"]
    for name in METRICS.built_in:
        spec = METRICS[name]
        images = f"{spec.least_images} image{'s' if spec.least_images > 1 else ''}"
        protocols = "alike in both" if spec.shared else "different"
        rows.append(f"| `{name}` | {spec.low:g} to 1 | {images} | {protocols} | {spec.summary} |")
    return "\n".join(rows) + "\n"


def table(section: type[BaseModel], prefix: str = "") -> str:
    """A row for each key of a section and of the sections in it: type, default, meaning."""
    return "\n".join([*HEAD, *(f"| {' | '.join(row)} |" for row in rows(section, prefix))])


def rows(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of each key of a section and of the sections in it."""
    schema = section.model_json_schema()
    for name, field in schema["properties"].items():
        if name == "kind" and prefix:
            continue
        key, default = f"`{prefix}{name}`", _default(section, name, field)
        if "discriminator" in field or any("discriminator" in each for each in field.get("anyOf", ())):
            text = field.get("description", "where the images are")
            yield key, "mapping", default, f"{_text(text)}: one of the sources below"
        elif (inner := _section_of(section.model_fields[name].annotation)) is not None:
            is_list = field.get("type") == "array"
            text = field.get("description") or (inner.__doc__ or "").split("\n\n")[0]
            yield key, "list of mappings" if is_list else "mapping", default, _text(text)
            yield from rows(inner, f"{prefix}{name}{'[]' if is_list else ''}.")
        else:
            yield key, _type(field), default, _text(field.get("description", ""))


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class in a field's type, itself or as an item or option; None if there is none, or several types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    options = [option for option in get_args(annotation) if option is not type(None)]
    return _section_of(options[0]) if len(options) == 1 else None


def _type(field: Schema) -> str:
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items = re.sub(r"^(whole number|number|mapping)\b", r"\1s", _type(field.get("items", {})))
        return f"list of {items}" if len(items) < LONGEST_DEFAULT else "list"
    if "$ref" in field:
        return "mapping"
    kind = field.get("type", "any")
    return f"{TYPES.get(kind, kind)} {_range(field)}".strip()


def _range(field: Schema) -> str:
    if "minimum" in field and "maximum" in field:
        return f"from {field['minimum']:.10g} to {field['maximum']:.10g}"
    return ", ".join(f"{sign} {field[name]:.10g}" for name, sign in BOUNDS if name in field)


def _default(section: type[BaseModel], name: str, field: Schema) -> str:
    info = section.model_fields[name]
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        return "see below"
    if default in ("", [], {}):
        return "unset"
    text = json.dumps(field.get("default", default)).replace('"', "")
    return f"`{text}`" if len(text) <= LONGEST_DEFAULT else "all"


def _text(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    print(reference(), metrics(), sep="\n", end="")
